// Groups of frames come ahead of time, decisions go out behind the person's back: no key waits for the network.

const AHEAD = 8;              // groups asked for before they are needed
const PRELOADED = 3;          // of them, those whose images are fetched, too
const SMALL = 256, LARGE = 1024;
const MOST_HELD = 2000;       // hashes that one request may name
const RETRY_MS = 1500, STATE_MS = 5000, STATE_SOON_MS = 800;

const $ = selector => document.querySelector(selector);
const client = crypto.randomUUID?.() ?? String(Math.random());
const queue = [];             // groups to come; the first is shown
const undone = [];            // what can be taken back: frames as they were, and what was decided of them
let state = null, generation = 0, asking = false, exhausted = false, here = 0, shown = null;
let unsent = [];              // decisions that the server has not confirmed
let sending = false;

const kept = () => `edgeloop review ${state?.folder ?? ""}`;

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const type = response.headers.get("content-type") ?? "";
  const answer = type.startsWith("application/json") ? await response.json() : {error: (await response.text()).trim()};
  return {status: response.status, answer};
}

// --- which frames ---

function wanted() {
  const status = $("#status").value, label = status.startsWith("label:");
  return {
    status: label ? "label" : status, label: label ? status.slice(6) : "",
    camera: $("#camera").value, guess: $("#guess").value, since: $("#since").value, until: $("#until").value,
    least: Number($("#least").value) || 0, most: $("#most").value === "" ? 1 : Number($("#most").value),
  };
}

async function fill() {
  if (asking || exhausted || queue.length > AHEAD / 2) return;
  asking = true;
  const asked = generation, settled = !unsent.length;
  let answer = null;
  try {
    // What is decided here and not there yet is still open there.
    const holding = [...queue, ...unsent].flatMap(one => one.frames.map(frame => frame.id ?? frame));
    const outcome = await call("/api/next", {client, holding: holding.slice(0, MOST_HELD), count: AHEAD, wanted: wanted()});
    if (outcome.status === 200) answer = outcome.answer;
    else tell(outcome.answer.error);
  } catch { /* deliver says what is wrong */ }
  asking = false;
  if (asked !== generation) { fill(); return; }
  if (!answer) { setTimeout(fill, RETRY_MS); return; }
  const busy = new Set([...queue.flatMap(group => group.frames.map(frame => frame.id)), ...unsent.flatMap(one => one.frames)]);
  let added = 0;
  for (const frames of answer.groups) {
    const fresh = frames.filter(frame => !busy.has(frame.id));
    if (fresh.length) added += queue.push(grouped(fresh));
  }
  exhausted = settled && !answer.groups.length;
  $("#wanted").textContent = `${answer.wanted.toLocaleString("en")} frames`;
  preload();
  if (shown !== (queue[0] ?? null) || !queue.length) show();
  setTimeout(fill, added ? 0 : RETRY_MS);
}

function grouped(frames) {
  const out = new Set($("#single").checked ? frames.slice(1).map(frame => frame.id) : []);
  return {frames, out};
}

function again() {
  generation += 1;
  queue.length = 0;
  exhausted = false;
  show();
  fill();
}

function preload() {
  for (const group of queue.slice(0, PRELOADED)) {
    group.frames.forEach((frame, place) => { frame.image ??= image(frame, place ? SMALL : LARGE); });
  }
}

function image(frame, side) {
  const image = new Image();
  image.decoding = "sync";
  image.alt = frame.guess ? `a frame the model takes for ${frame.guess}` : "a frame";
  image.onerror = () => { image.alt = "this image cannot be read any more"; };
  image.src = `/frame/${frame.id}.jpg?side=${side}`;
  return image;
}

// --- what is shown ---

function show() {
  const group = shown = queue[0] ?? null;
  here = 0;
  const list = $("#frames");
  list.replaceChildren();
  $("#empty").hidden = group !== null || !exhausted;
  $("#accept").hidden = !group?.frames[0].guess;
  $("#question").textContent = "";
  if (!group) {
    $("#empty").textContent = $("#status").value === "open" && !filtered()
      ? "Everything is decided. Retrain with these labels, or look them over under “Show”."
      : "No frames like that.";
    paintClasses();
    return;
  }
  preload();
  const guess = group.frames[0].guess;
  for (const [place, frame] of group.frames.entries()) {
    const item = element("li");
    item.dataset.id = frame.id;
    const said = frame.verdict === "open" ? frame.guess : frame.label || (frame.verdict === "none" ? "none of these" : "skipped");
    const line = element("p");
    line.append(element("span", said), element("span", frame.verdict === "open" && frame.guess ? frame.score.toFixed(2) : frame.by, "muted"));
    item.append(frame.image, element("span", "✓", "tick"), line);
    if (frame.at && place === 0) item.append(element("span", when(frame), "when"));
    item.classList.toggle("differs", frame.verdict === "open" ? frame.guess !== guess : frame.guess !== frame.label);
    item.title = [frame.camera, frame.at, frame.reason, frame.device_guess && `the device said ${frame.device_guess}`]
      .filter(Boolean).join(", ");
    item.onclick = event => { here = place; event.target.className === "tick" || event.shiftKey ? tick(place) : paint(); };
    item.ondblclick = () => { here = place; zoom(); };
    list.append(item);
  }
  const count = group.frames.length;
  $("#question").textContent = count === 1 ? "What does it show?" : `What do these ${count} show?`;
  $("#accept").replaceChildren(`${guess} `, element("kbd", "Enter"));
  paint();
  paintClasses();
}

const when = frame => `${frame.camera ? `${frame.camera}, ` : ""}${frame.at.slice(0, 16).replace("T", " ")}`;
const filtered = () => Boolean($("#camera").value || $("#guess").value || $("#since").value || $("#until").value ||
  Number($("#least").value) > 0 || Number($("#most").value) < 1);

function paint() {
  [...$("#frames").children].forEach((item, place) => {
    item.classList.toggle("here", place === here);
    item.classList.toggle("out", shown.out.has(item.dataset.id));
  });
}

function paintClasses() {
  const list = $("#classes"), guess = shown?.frames[0].guess;
  list.replaceChildren(...(state?.classes ?? []).map((one, place) => {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(place < 9 ? element("kbd", String(place + 1)) : "", element("span", one.name));
    if (one.new && state.trained) button.append(element("small", "new", "new"));
    button.append(element("small", one.count ? one.count.toLocaleString("en") : "", "muted"));
    button.classList.toggle("guess", one.name === guess);
    button.onclick = () => decide("label", one.name);
    item.append(button);
    return item;
  }));
}

function tick(place) {
  const id = shown.frames[place].id;
  if (!shown.out.delete(id)) shown.out.add(id);
  paint();
}

function tickAll() {
  if (shown.out.size) shown.out.clear();
  else shown.frames.forEach((frame, place) => { if (place !== here) shown.out.add(frame.id); });
  paint();
}

function zoom() {
  const dialog = $("#zoom");
  if (dialog.open) { dialog.close(); return; }
  if (!shown) return;
  enlarge();
  dialog.showModal();
}

function enlarge() {
  const frame = shown.frames[here];
  $("#zoom img").src = `/frame/${frame.id}.jpg?side=4096`;
  $("#zoom p").textContent = [when(frame), frame.guess && `${frame.guess} ${frame.score.toFixed(2)}`, frame.reason]
    .filter(Boolean).join(" · ");
}

function step(by) {
  if (!shown) return;
  here = Math.min(shown.frames.length - 1, Math.max(0, here + by));
  paint();
  $("#frames").children[here].scrollIntoView({block: "nearest"});
  if ($("#zoom").open) enlarge();
}

function columns() {
  const items = [...$("#frames").children].slice(1);
  if (!items.length) return 1;
  const top = items[items.length - 1].offsetTop;
  return Math.max(1, items.filter(item => item.offsetTop === top).length, items.filter(item => item.offsetTop === items[0].offsetTop).length);
}

// --- decisions ---

function decide(verdict, label = "") {
  if (!shown) return;
  const frames = shown.frames.filter(frame => !shown.out.has(frame.id));
  if (!frames.length) { tell("No frame is ticked: X ticks one, A all."); return; }
  const rest = shown.frames.filter(frame => shown.out.has(frame.id));
  undone.push({frames, made: {verdict, label}});
  queue.shift();
  if (rest.length) queue.unshift(grouped(rest));
  for (const frame of frames) count(frame, {verdict, label});
  send({frames: frames.map(frame => frame.id), verdict, label});
  show();
  fill();
}

function undo() {
  const last = undone.pop();
  if (!last) { tell("There is nothing to take back."); return; }
  const {frames, made} = last;
  const kinds = new Map();
  for (const frame of frames) {
    const kind = JSON.stringify([frame.verdict, frame.label]);
    kinds.set(kind, [...(kinds.get(kind) ?? []), frame.id]);
    count(made, frame);
  }
  for (const [kind, ids] of kinds) {
    const [verdict, label] = JSON.parse(kind);
    send({frames: ids, verdict, label});
  }
  queue.unshift({frames, out: new Set()});
  show();
}

function send(decision) {
  unsent.push({...decision, by: $("#you").value.trim()});
  remember();
  progress();
  deliver();
}

function remember() {
  try { localStorage.setItem(kept(), JSON.stringify(unsent)); } catch { /* then they live in this page alone */ }
}

async function deliver() {
  if (sending) return;
  sending = true;
  while (unsent.length) {
    let outcome;
    try {
      outcome = await call("/api/decide", unsent[0]);
    } catch {
      outcome = {status: 0, answer: {error: "edgeloop review does not answer; start it again, this page goes on by itself"}};
    }
    if (outcome.status === 200 || outcome.status === 400) {
      unsent.shift();
      remember();
      if (outcome.status === 400) tell(`Not saved: ${outcome.answer.error}`);
      else if (outcome.answer.overridden.length) {
        const [one] = outcome.answer.overridden, many = outcome.answer.overridden.length;
        tell(`${one.by || "Somebody"} had decided ${many === 1 ? "this frame" : `${many} of these`} otherwise (${one.label || one.verdict}); yours counts now, U takes it back.`);
      }
      $("#unsaved").hidden = !unsent.length;
    } else {
      $("#unsaved").hidden = false;
      $("#unsaved").textContent = `${unsent.length} decisions are not saved yet: ${outcome.answer.error}`;
      await new Promise(done => setTimeout(done, RETRY_MS));
    }
  }
  sending = false;
  lookSoon();
}

let silence = 0;
function tell(text) {
  $("#told").textContent = text;
  $("#told").hidden = false;
  clearTimeout(silence);
  silence = setTimeout(() => { $("#told").hidden = true; }, 8000);
}

// --- how far it is ---

function count(from, to) {
  // At once, before the server says so.
  for (const [one, sign] of [[from, -1], [to, 1]]) {
    state.counts[one.verdict] += sign;
    if (one.verdict !== "label") continue;
    let entry = state.classes.find(known => known.name === one.label);
    if (!entry) state.classes.push(entry = {name: one.label, count: 0, new: true});
    entry.count += sign;
  }
}

function progress() {
  const {counts} = state, settled = counts.frames - counts.open;
  $("#labelled").style.width = `${100 * counts.label / counts.frames}%`;
  $("#others").style.width = `${100 * Math.max(0, settled - counts.label) / counts.frames}%`;
  $("#count").textContent = `${settled.toLocaleString("en")} of ${counts.frames.toLocaleString("en")} frames decided.`;
  $("#outlook").textContent = told(state.outlook);
  $("#folder").textContent = state.folder;
}

function told(outlook) {
  if (!outlook) return "After some 40 labels this says how much more would help.";
  const percent = share => `${(100 * share).toFixed(0)} %`;
  let text = `On frames like those you labelled, a model that learns them is right ${percent(outlook.now)} of the time`;
  text += outlook.before === null ? "." : `, today's ${percent(outlook.before)}.`;
  if (outlook.before !== null && outlook.now < outlook.before + 0.02) {
    return `${text} They taught nothing yet: they are few, or some contradict others (look at “labelled …” under Show).`;
  }
  if (!outlook.twice) return text;
  const {avoided, low, high} = outlook.twice;
  if (avoided < 0.1) return `${text} Twice as many labels would change little${outlook.now > 0.9 ? ": this is enough for now" : ""}.`;
  return `${text} Twice as many labels would avoid about ${percent(avoided)} of its mistakes (${percent(low)} to ${percent(high)}).`;
}

let looking = 0;
function lookSoon() {
  looking ||= setTimeout(() => { looking = 0; look(); }, STATE_SOON_MS);
}

async function look() {
  try {
    const {status, answer} = await call("/api/state");
    if (status !== 200) { tell(answer.error); return; }
    if (unsent.length) return;
    const first = state === null;
    state = answer;
    if (first) begin();
    options($("#camera"), "all", state.cameras);
    options($("#guess"), "anything", [...state.classes.map(one => one.name), "none of these"]);
    labels();
    $("#by-camera").hidden = state.cameras.length < 2;
    $("#by-day").hidden = state.days.length < 2 || state.days[0] === state.days[1];
    $("#status option[value=disputed]").textContent = `decided differently (${state.disputed})`;
    const problems = $("#problems");
    problems.hidden = !state.problems.length;
    problems.firstElementChild.textContent = `${state.problems.length} problems`;
    problems.lastElementChild.replaceChildren(...state.problems.map(problem => element("li", problem)));
    progress();
    paintClasses();
  } catch { /* deliver says what is wrong; this is asked again */ }
}

function options(select, all, values) {
  const had = select.value;
  if (select.options.length === values.length + 1) return;
  const made = [["", all], ...values.map(value => [value, value])].map(([value, text]) => {
    const option = element("option", text);
    option.value = value;
    return option;
  });
  select.replaceChildren(...made);
  select.value = values.includes(had) ? had : "";
}

function labels() {
  const select = $("#status"), had = select.value;
  [...select.options].filter(option => option.value.startsWith("label:")).forEach(option => option.remove());
  for (const one of state.classes.filter(one => one.count)) {
    const option = element("option", `labelled ${one.name}`);
    option.value = `label:${one.name}`;
    select.append(option);
  }
  select.value = had;
  if (select.value !== had) select.value = "open";
  $("#names").replaceChildren(...state.classes.map(one => { const option = element("option"); option.value = one.name; return option; }));
}

function begin() {
  try {
    $("#you").value = localStorage.getItem("edgeloop you") ?? state.you;
    unsent = JSON.parse(localStorage.getItem(kept()) ?? "[]");
  } catch { $("#you").value = state.you; }
  [$("#since").min, $("#since").max] = [$("#until").min, $("#until").max] = state.days;
  if (unsent.length) deliver();
}

// --- keys ---

const name = () => { $("#name").value = ""; $("#naming").showModal(); };
const single = () => { $("#single").checked = !$("#single").checked; again(); };
const accept = () => { if (shown?.frames[0].guess) shown.frames[0].guess === "none of these" ? decide("none") : decide("label", shown.frames[0].guess); };

const KEYS = {
  Enter: accept, "0": () => decide("none"), n: () => decide("none"), s: () => decide("skip"), u: undo,
  "/": name, "+": name, x: () => shown && tick(here), a: () => shown && tickAll(), z: zoom, " ": zoom, o: single,
  "?": () => $("#keys").showModal(), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  ArrowUp: () => step(-columns()), ArrowDown: () => step(columns()),
};

document.addEventListener("keydown", event => {
  const typing = event.target.matches("input:not([type=checkbox]), select") || $("#naming").open || $("#keys").open;
  if (typing || event.ctrlKey && event.key !== "z" || event.metaKey || event.altKey) return;
  const digit = /^[1-9]$/.test(event.key) ? state?.classes[event.key - 1] : null;
  const act = event.ctrlKey ? undo : digit ? () => decide("label", digit.name) : KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!act || event.repeat && event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  if (event.key === "Enter" && event.target.matches("button, a, summary")) return;
  event.preventDefault();
  act();
});

$("#accept").onclick = accept;
$("#none").onclick = () => decide("none");
$("#skip").onclick = () => decide("skip");
$("#other").onclick = name;
$("#undo").onclick = undo;
$("#help").onclick = () => $("#keys").showModal();
$("#zoom").onclick = () => $("#zoom").close();
$("#you").onchange = () => { try { localStorage.setItem("edgeloop you", $("#you").value.trim()); } catch { /* for this page alone, then */ } };
$("#filters").onchange = again;
$("#filters").onsubmit = event => event.preventDefault();
$("#naming").onclose = () => {
  const label = $("#name").value.trim();
  if ($("#naming").returnValue === "ok" && label) decide("label", label);
};
addEventListener("beforeunload", event => { if (unsent.length) event.preventDefault(); });

await look();
fill();
setInterval(() => { if (!sending) look(); }, STATE_MS);
