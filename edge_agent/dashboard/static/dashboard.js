// The dashboard. All data from the agent is text: it is set with textContent or drawn on a canvas, never as markup.

const SPAN_S = 300;          // time span of the plots; the server keeps the same span
const IMAGE_MS = 500;        // interval between two images of a camera
const SILENCE_MS = 12000;    // the server sends data at least every 5 s
const RETRY_MS = [500, 1000, 2000, 4000];
const KEPT_LABELS = 200, KEPT_EVENTS = 50;
const HUES = [152, 28, 262, 205, 338, 52, 300, 178, 8, 232];
const FLAGS = {
  under_voltage: "Under-voltage: the power supply is too weak",
  frequency_capped: "Processor frequency capped",
  throttled: "Processor throttled",
  soft_temperature_limit: "Soft temperature limit reached",
};
const GONE = { lost: "Camera lost", frozen: "Image frozen", ended: "Video ended" };

const $ = (selector, root = document) => root.querySelector(selector);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const percent = (score) => `${Math.round(100 * score)} %`;
const clock = (rfc) => new Date(rfc).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

let state = null;            // merged state of the server; null before the first message
let nowS = 0, receivedAt = 0;   // the server's clock, and our clock when we received it
let source = null, attempt = 0, dirty = false;
let cards = new Map();

const serverNow = () => nowS + (performance.now() - receivedAt) / 1000;

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, text = "", kind = "") {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

// --- the connection ---

function connect() {
  source?.close();
  source = new EventSource("api/events");
  source.addEventListener("state", (event) => receive(event, true));
  source.addEventListener("changes", (event) => receive(event, false));
  source.onerror = () => lose();
}

function receive(event, whole) {
  const changes = JSON.parse(event.data);
  if (whole) {
    state = { cameras: {}, events: [] };
    attempt = 0;
  }
  merge(changes);
  nowS = changes.now_s;
  receivedAt = performance.now();
  $("#lost").hidden = true;
  show($("#link"), "link up", "live");
  dirty = true;
}

// The browser reconnects automatically after most errors, but not after all of them.
function lose() {
  source?.close();
  source = null;
  show($("#link"), "link down", "not connected");
  if (state !== null) {
    put($("#lost"), "The connection to the agent is lost. The data shown is out of date. Reconnecting.");
    $("#lost").hidden = false;
  }
  setTimeout(connect, RETRY_MS[Math.min(attempt++, RETRY_MS.length - 1)]);
}

function show(element, kind, text) {
  element.className = kind;
  put(element, text);
}

function merge(changes) {
  for (const key of ["device", "info", "health", "tunables"]) if (key in changes) state[key] = changes[key];
  state.events = [...state.events, ...(changes.events ?? [])].slice(-KEPT_EVENTS);
  for (const [name, part] of Object.entries(changes.cameras ?? {})) {
    const camera = (state.cameras[name] ??= { points: [], labels: [] });
    const { points = [], labels = [], ...present } = part;
    Object.assign(camera, present);
    camera.points = [...camera.points, ...points].slice(-SPAN_S);
    camera.labels = [...camera.labels, ...labels].slice(-KEPT_LABELS);
  }
}

// --- cameras ---

function cardOf(name) {
  if (cards.has(name)) return cards.get(name);
  const root = $("#camera").content.firstElementChild.cloneNode(true);
  const card = { name, root, hues: new Map(), busy: { live: false, model: false } };
  $("h2", root).textContent = name;
  const see = $(".see", root);
  see.addEventListener("click", () => {
    const pressed = see.getAttribute("aria-pressed") !== "true";
    see.setAttribute("aria-pressed", String(pressed));
    $(".model", root).hidden = !pressed;
    if (pressed) refresh(card, "model");
  });
  $("#cameras").append(root);
  cards.set(name, card);
  $("#cameras").classList.toggle("several", cards.size > 1);
  refresh(card, "live");
  return card;
}

function drawCamera(name, camera) {
  const card = cardOf(name), root = card.root;
  const gone = camera.state ? GONE[camera.state.state] : undefined;
  const notice = $(".gone", root);
  root.classList.toggle("off", gone !== undefined);
  notice.hidden = gone === undefined;
  if (gone !== undefined) {
    put($("strong", notice), gone);
    put($("span", notice), `since ${clock(camera.state.since)}, ${duration(serverNow() - camera.state.since_s)}`);
  }
  const label = camera.label?.label ?? "waiting";
  put($(".label", root), label);
  $(".label", root).classList.toggle("unknown", label === "unknown" || !camera.label);
  const score = camera.score ?? camera.label?.score;
  $(".meter i", root).style.width = `${100 * (score ?? 0)}%`;
  put($("output", root), score === undefined ? "" : percent(score));
  const latest = camera.labels.at(-1);
  put($(".since", root), gone !== undefined ? "last label before that" : camera.label && latest?.[1] ? `since ${clock(camera.label.captured_at)}, ${duration(serverNow() - latest[0])}` : "");
  drawTop($(".top", root), (camera.result ?? camera.label)?.top ?? []);
  drawRegion(card, camera.region);
  drawStrip($(".strip", root), card, camera);
  drawSpark($(".spark", root), card, camera);
}

function drawTop(list, top) {
  while (list.children.length > top.length) list.lastElementChild.remove();
  while (list.children.length < top.length) {
    const item = make("li"), bar = make("div", "", "bar");
    bar.append(make("i"));
    item.append(make("span"), bar, make("span", "", "number"));
    list.append(item);
  }
  top.forEach(({ label, score }, row) => {
    const [name, bar, number] = list.children[row].children;
    put(name, label);
    name.title = label;
    bar.firstElementChild.style.width = `${100 * score}%`;
    put(number, percent(score));
  });
}

function drawRegion(card, region = [0, 0, 1, 1]) {
  const box = $(".region", card.root), whole = region.join() === "0,0,1,1";
  box.hidden = whole;
  $(".part", card.root).hidden = whole;
  const [left, top, right, bottom] = region.map((part) => 100 * part);
  Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
}

// --- images: the next one is requested after the last one is shown, so that slow connections request fewer ---

async function refresh(card, kind) {
  const figure = $(`.${kind}`, card.root);
  if (card.busy[kind] || figure.hidden) return;
  card.busy[kind] = true;
  const started = performance.now();
  if (!document.hidden && source !== null) {
    const path = `camera/${encodeURIComponent(card.name)}${kind === "live" ? ".jpg" : "/model.png"}`;
    const next = new Image();
    next.className = "shot";
    next.src = `${path}?${Date.now()}`;
    try {
      await next.decode();
      await new Promise(requestAnimationFrame);
      next.alt = kind === "live" ? `Live image of camera ${card.name}` : `Model input from camera ${card.name}`;
      $(".shot", figure).replaceWith(next);
      if (kind === "model") put($("figcaption", figure), `Model input, ${next.naturalWidth} × ${next.naturalHeight}`);
    } catch {
      // No image yet, or no connection; the event stream reports a lost connection.
    }
  }
  setTimeout(() => {
    card.busy[kind] = false;
    if (cards.get(card.name) === card) refresh(card, kind);
  }, Math.max(50, IMAGE_MS - (performance.now() - started)));
}

// --- plots ---

function plot(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return { pen, width, height };
}

const LEFT = 44;

function axes({ pen, width, height }, ticks, most, suffix) {
  const bottom = height - 20, top = 8;
  const x = (s) => LEFT + (width - LEFT - 6) * (1 - (serverNow() - s) / SPAN_S);
  const y = (value) => bottom - (bottom - top) * (value / most);
  pen.strokeStyle = css("--line");
  pen.fillStyle = css("--muted");
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const tick of ticks) {
    const at = Math.round(y(tick)) + 0.5;
    pen.beginPath();
    pen.moveTo(LEFT, at);
    pen.lineTo(width - 6, at);
    pen.stroke();
    pen.fillText(`${tick}${suffix}`, LEFT - 7, at);
  }
  pen.textBaseline = "alphabetic";
  const mostMinutes = SPAN_S / 60, every = width < 480 ? 2 : 1;
  for (let minutes = mostMinutes - (mostMinutes % every); minutes >= 0; minutes -= every) {
    pen.textAlign = minutes === 0 ? "right" : minutes === mostMinutes ? "left" : "center";
    pen.fillText(minutes ? `−${minutes} min` : "now", x(serverNow() - 60 * minutes), height - 4);
  }
  return { x, y, bottom };
}

// Seconds without results, for example while a camera is lost, leave a gap.
function line(pen, points, x, y, colour) {
  pen.strokeStyle = colour;
  pen.lineWidth = 1.8;
  pen.lineJoin = "round";
  pen.beginPath();
  let before = -Infinity;
  for (const [at, value] of points) {
    if (x(at) >= LEFT) {
      if (at - before > 3) {
        pen.moveTo(x(at) - 1, y(value));
      }
      pen.lineTo(x(at), y(value));
    }
    before = at;
  }
  pen.stroke();
}

function hue(card, label) {
  if (!card.hues.has(label)) card.hues.set(label, HUES[card.hues.size % HUES.length]);
  return card.hues.get(label);
}

// Returns the text, or its beginning if it is too long, or nothing if the rest would be too short to read.
function fitting(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let length = text.length;
  while (length >= 4 && pen.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return length >= 4 ? `${text.slice(0, length).trimEnd()}…` : "";
}

function drawStrip(canvas, card, camera) {
  const { pen, width, height } = plot(canvas);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = serverNow(), x = (s) => LEFT + (width - LEFT - 6) * (1 - (now - s) / SPAN_S);
  pen.fillStyle = css("--soft");
  pen.fillRect(LEFT, 0, width - LEFT - 6, height);
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  const shown = [];
  camera.labels.forEach(([at, label], index) => {
    const end = camera.labels[index + 1]?.[0] ?? now;
    if (label === null || end < now - SPAN_S || end === at) return;
    const from = Math.max(LEFT, x(at)), to = x(end);
    const known = label !== "unknown";
    pen.fillStyle = known ? `hsl(${hue(card, label)} ${dark ? "38% 34%" : "48% 80%"})` : css("--line");
    pen.fillRect(from, 0, Math.max(1, to - from), height);
    pen.fillStyle = known ? (dark ? "#fff" : "#1b211d") : css("--muted");
    pen.fillText(fitting(pen, label.slice(0, 80), to - from - 14), from + 7, height / 2 + 0.5);
    shown.push(label);
  });
  canvas.setAttribute("aria-label", `Labels of the last five minutes: ${shown.slice(-10).join(", ") || "none"}`);
}

function drawSpark(canvas, card, camera) {
  const area = plot(canvas);
  const { x, y } = axes(area, [0, 50, 100], 100, " %");
  line(area.pen, camera.points.map((point) => [point[0] + 0.5, 100 * point[2]]), x, y, css("--accent"));
  const last = camera.points.at(-1);
  canvas.setAttribute("aria-label", `Score of ${card.name}${last ? `, now ${percent(last[2])}` : ""}`);
}

const LINES = [["preprocess", 3, "--one"], ["inference", 4, "--two"], ["capture to publish", 5, "--three"]];

// All cameras together, per second: means weighted by the number of results, and the highest age of a frame.
function seconds() {
  const all = new Map();
  for (const camera of Object.values(state.cameras)) {
    for (const point of camera.points) {
      const sum = all.get(point[0]) ?? [point[0], 0, 0, 0, 0, 0, 0];
      sum[1] += point[1];
      for (const index of [3, 4, 5]) sum[index] += point[1] * point[index];
      sum[6] = Math.max(sum[6], point[6]);
      all.set(point[0], sum);
    }
  }
  const rows = [...all.values()].sort((a, b) => a[0] - b[0]);
  for (const row of rows) for (const index of [3, 4, 5]) row[index] /= row[1];
  return rows.filter((row) => row[0] > serverNow() - SPAN_S);
}

function drawLatency(rows) {
  const area = plot($("#latency"));
  const highest = Math.max(1, ...rows.map((row) => row[6]));
  const step = [1, 2, 5].map((lead) => lead * 10 ** Math.floor(Math.log10(highest)))
    .flatMap((size) => [size / 10, size]).sort((a, b) => a - b).find((size) => highest / size <= 4.5);
  const ticks = [];
  for (let tick = 0; tick < highest + step; tick += step) ticks.push(Number(tick.toPrecision(6)));
  const { x, y } = axes(area, ticks, ticks.at(-1), "");
  const colour = css("--three");
  area.pen.fillStyle = colour;
  area.pen.globalAlpha = 0.28;
  for (const row of rows) area.pen.fillRect(x(row[0] + 0.5) - 1, y(row[6]), 2, Math.max(0, y(row[5]) - y(row[6])));
  area.pen.globalAlpha = 1;
  for (const [, index, name] of LINES) line(area.pen, rows.map((row) => [row[0] + 0.5, row[index]]), x, y, css(name));
  const last = rows.at(-1), legend = $("#legend");
  if (!legend.children.length) {
    for (const [, , name] of [...LINES, ["", 0, "--three"]]) {
      const item = make("span"), key = make("i");
      key.style.background = `var(${name})`;
      item.append(key, make("span"));
      legend.append(item);
    }
    legend.lastElementChild.firstElementChild.style.opacity = "0.4";
  }
  LINES.forEach(([text, index], row) => put(legend.children[row].lastElementChild, `${text}${last ? ` ${last[index].toFixed(1)}` : ""}`));
  put(legend.lastElementChild.lastElementChild, "maximum per second");
}

// --- the device ---

function tile(name, value, unit = "", warn = false) {
  const list = $("#tiles");
  const existing = [...list.children].find((item) => item.dataset.name === name);
  if (value === null || value === undefined) return existing?.remove();
  const item = existing ?? make("div");
  if (!existing) {
    item.dataset.name = name;
    const number = make("dd");
    number.append(make("span"), make("small"));
    item.append(make("dt", name), number);
    list.append(item);
  }
  const number = $("dd", item);
  number.classList.toggle("warn", warn);
  put(number.children[0], String(value));
  put(number.children[1], unit);
}

function drawDevice(rows) {
  const { info, health } = state;
  if (info) {
    put($("#model"), `${info.model.name} ${info.model.version}`);
    $("#model").title = info.model.digest;
    put($("#versions"), `edgeloop ${info.edgeloop}, ${info.runtime}, ${info.threads} threads, Python ${info.python}` +
      `${info.recorder ? ", saving frames for retraining" : ""}`);
  }
  put($("#device"), state.device);
  document.title = `${state.device}, edgeloop`;
  const until = Math.floor(serverNow()) - 1;
  const counted = rows.filter((row) => row[0] > until - 5 && row[0] <= until).reduce((sum, row) => sum + row[1], 0);
  tile("Classified", (counted / 5).toFixed(counted >= 50 ? 0 : 1), "frames/s");
  if (!health) return;
  const cameras = Object.values(health.cameras);
  tile("Captured", cameras.reduce((sum, camera) => sum + camera.captured_fps, 0).toFixed(1), "frames/s");
  tile("Inference p99", health.latency_ms.inference.count ? health.latency_ms.inference.p99.toFixed(1) : null, "ms");
  tile("Temperature", health.temperature_c?.toFixed(1), "°C", health.temperature_c >= 80);
  tile("Memory", health.memory_mb?.toFixed(0), "MB");
  tile("Disk free", health.disk_free_mb === null ? null : (health.disk_free_mb / 1000).toFixed(1), "GB", health.disk_free_mb < 500);
  tile("Queued events", health.spool?.depth, health.spool?.dropped ? `${health.spool.dropped} lost` : "", health.spool?.depth > 0);
  tile("Frames saved", health.recorder?.kept, health.recorder?.paused ? "paused" : "");
  tile("Uptime", duration(health.uptime_s));
  const flags = health.throttled ?? [];
  const now = flags.filter((flag) => flag in FLAGS).map((flag) => FLAGS[flag]);
  put($("#throttled"), `${now.join(". ")}.`);
  $("#throttled").hidden = !now.length;
  const before = flags.map((flag) => flag.replace(/_occurred$/, "")).filter((flag, index) => flag !== flags[index] && !flags.includes(flag));
  put($("#throttled-before"), `Since the device started, but not at the moment: ${before.map((flag) => (FLAGS[flag] ?? flag).toLowerCase()).join("; ")}.`);
  $("#throttled-before").hidden = !before.length;
}

let eventsShown = null;

function drawEvents() {
  const newest = state.events.at(-1), key = newest ? `${state.events.length} ${newest.camera} ${newest.captured_at} ${newest.label}` : "";
  if (key === eventsShown) return;
  eventsShown = key;
  $("#no-events").hidden = state.events.length > 0;
  $("#events").replaceChildren(...[...state.events].reverse().map((event) => {
    const item = make("li");
    item.append(make("span", clock(event.captured_at), "muted"), make("span", event.camera, "muted"), make("span", event.label), make("span", percent(event.score)));
    item.children[2].title = event.label;
    return item;
  }));
}

function draw() {
  dirty = false;
  const rows = seconds();
  for (const [name, card] of cards) {
    if (!(name in state.cameras)) {
      card.root.remove();
      cards.delete(name);
    }
  }
  for (const [name, camera] of Object.entries(state.cameras)) drawCamera(name, camera);
  drawDevice(rows);
  drawLatency(rows);
  drawEvents();
}

// --- time ---

let drawnAt = 0;

function tick(now) {
  // Redraw after each message, and every second so that the plots move.
  if (state !== null && (dirty || now - drawnAt > 1000)) {
    drawnAt = now;
    draw();
  }
  requestAnimationFrame(tick);
}

setInterval(() => {
  if (source !== null && receivedAt && performance.now() - receivedAt > SILENCE_MS) lose();
}, 1000);
document.addEventListener("visibilitychange", () => { dirty = true; });
connect();
requestAnimationFrame(tick);
