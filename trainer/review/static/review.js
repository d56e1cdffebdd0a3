// Groups are fetched in advance and annotations are sent in the background, so that no key press waits for the network.

const AHEAD = 8;              // groups fetched in advance
const PRELOADED = 3;          // groups whose images are fetched in advance
const SMALL = 256, LARGE = 1024;
const MAX_HELD = 2000;        // maximum number of hashes in one request
const RETRY_MS = 1500, STATE_MS = 5000, STATE_SOON_MS = 800;

const $ = selector => document.querySelector(selector);
const client = crypto.randomUUID?.() ?? String(Math.random());
const queue = [];             // groups to label; the first one is shown
const history = [];           // steps that can be undone: the frames as they were, and their new annotation
let state = null, generation = 0, asking = false, exhausted = false, current = 0, shown = null;
let unsent = [];              // annotations that the server has not confirmed
let sending = false;

const storageKey = () => `edgeloop review ${state?.folder ?? ""}`;

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

function criteria() {
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
  const startedIn = generation, settled = !unsent.length;
  let answer = null;
  try {
    // Annotations that are not sent yet are still open on the server.
    const holding = [...queue, ...unsent].flatMap(one => one.frames.map(frame => frame.id ?? frame));
    const outcome = await call("api/next", {client, holding: holding.slice(0, MAX_HELD), count: AHEAD, wanted: criteria()});
    if (outcome.status === 200) answer = outcome.answer;
    else notify(outcome.answer.error);
  } catch { /* deliver shows the error */ }
  asking = false;
  if (startedIn !== generation) { fill(); return; }
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

function reload() {
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
  image.alt = frame.guess ? `frame with the predicted class ${frame.guess}` : "frame";
  image.onerror = () => { image.alt = "this image can no longer be read"; };
  image.src = `frame/${frame.id}.jpg?side=${side}`;
  return image;
}

// --- what is shown ---

function show() {
  const group = shown = queue[0] ?? null;
  current = 0;
  const list = $("#frames");
  list.replaceChildren();
  $("#empty").hidden = group !== null || !exhausted;
  $("#accept").hidden = !group?.frames[0].guess;
  $("#question").textContent = "";
  if (!group) {
    $("#empty").textContent = $("#status").value === "open" && !filtered()
      ? "All frames are reviewed. Retrain with these labels, or check them under “Show”."
      : "No frames match the filter.";
    paintClasses();
    return;
  }
  preload();
  const guess = group.frames[0].guess;
  for (const [place, frame] of group.frames.entries()) {
    const item = element("li");
    item.dataset.id = frame.id;
    const caption = frame.verdict === "open" ? frame.guess : frame.label || (frame.verdict === "none" ? "none of these" : "skipped");
    const line = element("p");
    line.append(element("span", caption), element("span", frame.verdict === "open" && frame.guess ? frame.score.toFixed(2) : frame.by, "muted"));
    item.append(frame.image, element("span", "✓", "tick"), line);
    if (frame.at && place === 0) item.append(element("span", when(frame), "when"));
    item.classList.toggle("differs", frame.verdict === "open" ? frame.guess !== guess : frame.guess !== frame.label);
    item.title = [frame.camera, frame.at, frame.reason, frame.device_guess && `predicted on the device: ${frame.device_guess}`]
      .filter(Boolean).join(", ");
    item.onclick = event => { current = place; event.target.className === "tick" || event.shiftKey ? tick(place) : paint(); };
    item.ondblclick = () => { current = place; zoom(); };
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
    item.classList.toggle("current", place === current);
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
    button.onclick = () => annotate("label", one.name);
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
  else shown.frames.forEach((frame, place) => { if (place !== current) shown.out.add(frame.id); });
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
  const frame = shown.frames[current];
  $("#zoom img").src = `frame/${frame.id}.jpg?side=4096`;
  $("#zoom p").textContent = [when(frame), frame.guess && `${frame.guess} ${frame.score.toFixed(2)}`, frame.reason]
    .filter(Boolean).join(" · ");
}

function step(by) {
  if (!shown) return;
  current = Math.min(shown.frames.length - 1, Math.max(0, current + by));
  paint();
  $("#frames").children[current].scrollIntoView({block: "nearest"});
  if ($("#zoom").open) enlarge();
}

function columns() {
  const items = [...$("#frames").children].slice(1);
  if (!items.length) return 1;
  const top = items[items.length - 1].offsetTop;
  return Math.max(1, items.filter(item => item.offsetTop === top).length, items.filter(item => item.offsetTop === items[0].offsetTop).length);
}

// --- annotations ---

function annotate(verdict, label = "") {
  if (!shown) return;
  const frames = shown.frames.filter(frame => !shown.out.has(frame.id));
  if (!frames.length) { notify("No frame is ticked. Press X to tick one, or A to tick all."); return; }
  const rest = shown.frames.filter(frame => shown.out.has(frame.id));
  history.push({frames, made: {verdict, label}});
  queue.shift();
  if (rest.length) queue.unshift(grouped(rest));
  for (const frame of frames) count(frame, {verdict, label});
  send({frames: frames.map(frame => frame.id), verdict, label});
  show();
  fill();
}

function undo() {
  const last = history.pop();
  if (!last) { notify("There is nothing to undo."); return; }
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

function send(annotation) {
  unsent.push({...annotation, by: $("#you").value.trim()});
  remember();
  progress();
  deliver();
}

function remember() {
  try { localStorage.setItem(storageKey(), JSON.stringify(unsent)); } catch { /* without storage they exist only in this page */ }
}

async function deliver() {
  if (sending) return;
  sending = true;
  while (unsent.length) {
    let outcome;
    try {
      outcome = await call("api/decide", unsent[0]);
    } catch {
      outcome = {status: 0, answer: {error: "edgeloop review does not answer; start it again, and this page continues automatically"}};
    }
    if (outcome.status === 200 || outcome.status === 400) {
      unsent.shift();
      remember();
      if (outcome.status === 400) notify(`Not saved: ${outcome.answer.error}`);
      else if (outcome.answer.overridden.length) {
        const [one] = outcome.answer.overridden, many = outcome.answer.overridden.length;
        notify(`${one.by || "Another person"} had labelled ${many === 1 ? "this frame" : `${many} of these frames`} differently (${one.label || one.verdict}). Your label is used now; press U to undo it.`);
      }
      $("#unsaved").hidden = !unsent.length;
    } else {
      $("#unsaved").hidden = false;
      $("#unsaved").textContent = `${unsent.length} labels are not saved yet: ${outcome.answer.error}`;
      await new Promise(done => setTimeout(done, RETRY_MS));
    }
  }
  sending = false;
  refreshSoon();
}

let hideTimer = 0;
function notify(text) {
  $("#message").textContent = text;
  $("#message").hidden = false;
  clearTimeout(hideTimer);
  hideTimer = setTimeout(() => { $("#message").hidden = true; }, 8000);
}

// --- progress ---

function count(from, to) {
  // Updated at once, before the server confirms.
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
  $("#count").textContent = `${settled.toLocaleString("en")} of ${counts.frames.toLocaleString("en")} frames reviewed.`;
  $("#forecast").textContent = forecastText(state.outlook);
  $("#folder").textContent = state.folder;
}

function forecastText(forecast) {
  if (!forecast) return "After about 40 labels, a forecast shows how much more labels would help.";
  const percent = share => `${(100 * share).toFixed(0)} %`;
  let text = `On frames like those labelled, a model trained on the labels is right ${percent(forecast.now)} of the time`;
  text += forecast.before === null ? "." : `, the current model ${percent(forecast.before)}.`;
  if (forecast.before !== null && forecast.now < forecast.before + 0.02) {
    return `${text} The labels have not improved it yet: there are too few, or some contradict others (check “labelled …” under Show).`;
  }
  if (!forecast.twice) return text;
  const {avoided, low, high} = forecast.twice;
  if (avoided < 0.1) return `${text} Twice as many labels would change little${forecast.now > 0.9 ? "; these are enough for now" : ""}.`;
  return `${text} Twice as many labels would avoid about ${percent(avoided)} of its mistakes (${percent(low)} to ${percent(high)}).`;
}

let refreshTimer = 0;
function refreshSoon() {
  refreshTimer ||= setTimeout(() => { refreshTimer = 0; refresh(); }, STATE_SOON_MS);
}

async function refresh() {
  try {
    const {status, answer} = await call("api/state");
    if (status !== 200) { notify(answer.error); return; }
    if (unsent.length) return;
    const first = state === null;
    state = answer;
    if (first) begin();
    options($("#camera"), "all", state.cameras);
    options($("#guess"), "any class", [...state.classes.map(one => one.name), "none of these"]);
    labels();
    $("#by-camera").hidden = state.cameras.length < 2;
    $("#by-day").hidden = state.days.length < 2 || state.days[0] === state.days[1];
    $("#status option[value=disputed]").textContent = `disputed (${state.disputed})`;
    const problems = $("#problems");
    problems.hidden = !state.problems.length;
    problems.firstElementChild.textContent = `${state.problems.length} problems`;
    problems.lastElementChild.replaceChildren(...state.problems.map(problem => element("li", problem)));
    progress();
    paintClasses();
  } catch { /* deliver shows the error; the state is requested again later */ }
}

function options(select, all, values) {
  const previous = select.value;
  if (select.options.length === values.length + 1) return;
  const made = [["", all], ...values.map(value => [value, value])].map(([value, text]) => {
    const option = element("option", text);
    option.value = value;
    return option;
  });
  select.replaceChildren(...made);
  select.value = values.includes(previous) ? previous : "";
}

function labels() {
  const select = $("#status"), previous = select.value;
  [...select.options].filter(option => option.value.startsWith("label:")).forEach(option => option.remove());
  for (const one of state.classes.filter(one => one.count)) {
    const option = element("option", `labelled ${one.name}`);
    option.value = `label:${one.name}`;
    select.append(option);
  }
  select.value = previous;
  if (select.value !== previous) select.value = "open";
  $("#names").replaceChildren(...state.classes.map(one => { const option = element("option"); option.value = one.name; return option; }));
}

function begin() {
  try {
    $("#you").value = localStorage.getItem("edgeloop you") ?? state.you;
    unsent = JSON.parse(localStorage.getItem(storageKey()) ?? "[]");
  } catch { $("#you").value = state.you; }
  [$("#since").min, $("#since").max] = [$("#until").min, $("#until").max] = state.days;
  if (unsent.length) deliver();
}

// --- keys ---

const name = () => { $("#name").value = ""; $("#naming").showModal(); };
const single = () => { $("#single").checked = !$("#single").checked; reload(); };
const accept = () => { if (shown?.frames[0].guess) shown.frames[0].guess === "none of these" ? annotate("none") : annotate("label", shown.frames[0].guess); };

const KEYS = {
  Enter: accept, "0": () => annotate("none"), n: () => annotate("none"), s: () => annotate("skip"), u: undo,
  "/": name, "+": name, x: () => shown && tick(current), a: () => shown && tickAll(), z: zoom, " ": zoom, o: single,
  "?": () => $("#keys").showModal(), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  ArrowUp: () => step(-columns()), ArrowDown: () => step(columns()),
};

document.addEventListener("keydown", event => {
  const typing = event.target.matches("input:not([type=checkbox]), select") || $("#naming").open || $("#keys").open;
  if (typing || event.ctrlKey && event.key !== "z" || event.metaKey || event.altKey) return;
  const digit = /^[1-9]$/.test(event.key) ? state?.classes[event.key - 1] : null;
  const act = event.ctrlKey ? undo : digit ? () => annotate("label", digit.name) : KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!act || event.repeat && event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  if (event.key === "Enter" && event.target.matches("button, a, summary")) return;
  event.preventDefault();
  act();
});

$("#accept").onclick = accept;
$("#none").onclick = () => annotate("none");
$("#skip").onclick = () => annotate("skip");
$("#other").onclick = name;
$("#undo").onclick = undo;
$("#help").onclick = () => $("#keys").showModal();
$("#zoom").onclick = () => $("#zoom").close();
$("#you").onchange = () => { try { localStorage.setItem("edgeloop you", $("#you").value.trim()); } catch { /* without storage the name is valid only in this page */ } };
$("#filters").onchange = reload;
$("#filters").onsubmit = event => event.preventDefault();
$("#naming").onclose = () => {
  const label = $("#name").value.trim();
  if ($("#naming").returnValue === "ok" && label) annotate("label", label);
};
addEventListener("beforeunload", event => { if (unsent.length) event.preventDefault(); });

await refresh();
fill();
setInterval(() => { if (!sending) refresh(); }, STATE_MS);
