"use strict";
// One film at a time: it stays in the page, is sent whenever the server is asked, and nothing is kept there.

const EVENTS = ["onset", "apex", "offset"];
const LEFT = 56, RIGHT = 784, TOP = 74, BOTTOM = 230; // of the curve, in the chart's own units
const BARS = { top: 282, bottom: 322 };
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

let files = []; // what was dropped, pictures in order
let result = null; // what the server said of it
let marks = {}; // frames of the events, as they stand in the chart
let asking = false;

function complain(sentence) {
  at("status").textContent = "";
  at("error").textContent = sentence[0].toUpperCase() + sentence.slice(1) + ".";
  at("error").hidden = false;
}

function look(dropped) {
  if (!dropped.length || asking) return;
  files = [...dropped].sort((a, b) => new Intl.Collator(undefined, { numeric: true }).compare(a.name, b.name));
  at("result").hidden = true;
  ask(null);
}

async function ask(events) {
  if (asking) return;
  at("error").hidden = true;
  const megabytes = Number(document.body.dataset.megabytes);
  if (files.reduce((sum, file) => sum + file.size, 0) > megabytes * 1e6) {
    return complain(`the upload is larger than ${megabytes} MB, the limit here: cut the film`);
  }
  const options = new URLSearchParams(events || {});
  if (at("fps").value) options.set("fps", at("fps").value);
  if (files.length > 1) options.set("lengths", files.map((file) => file.size).join());
  asking = true;
  at("status").textContent = "Looking at the film…";
  try {
    const response = await fetch(`predict?${options}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: files.length > 1 ? new Blob(files) : files[0],
    });
    const told = await response.json();
    if (!response.ok) return complain(told.error);
    result = { ...told.result, file: files.length > 1 ? `${files.length} pictures` : files[0].name };
    show(told.face);
    if (!events) at("label").focus();
    at("status").textContent = `Done: ${result.label}.`;
  } catch {
    complain("the server cannot be reached, or it ended the upload");
  } finally {
    asking = false;
  }
}

function show(face) {
  at("label").textContent = result.label;
  at("generated").hidden = !result.generated;
  at("face").src = `data:image/png;base64,${face}`;
  const [x, y, width, height] = result.face;
  at("face-note").textContent =
    `Apex, frame ${result.apex}. ` + (result.face_found ? `The face: ${width} × ${height} pixels at ${x}, ${y}.` : "");
  const rows = Object.entries(result.probabilities).sort((a, b) => b[1] - a[1]);
  at("probabilities").replaceChildren(...rows.map(([name, value]) => row(name, value)));
  at("notes").replaceChildren(...result.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  at("notes").hidden = !result.notes.length;
  EVENTS.forEach((event) => (marks[event] = result[event]));
  at("result").hidden = false;
  draw();
}

function row(name, value) {
  const line = document.createElement("tr");
  line.className = result.label.split("+").includes(name) || result.label === name ? "said" : "";
  const title = Object.assign(document.createElement("th"), { scope: "row", textContent: name });
  const meter = Object.assign(document.createElement("meter"), { max: 1, value });
  meter.setAttribute("aria-hidden", "true"); // the number beside it says the same
  const bar = document.createElement("td");
  bar.append(meter);
  line.append(title, bar, Object.assign(document.createElement("td"), { className: "number", textContent: value.toFixed(3) }));
  return line;
}

// The chart ------------------------------------------------------------------------------------------------------------

const last = () => result.times.length - 1;
const across = (frame) => LEFT + ((RIGHT - LEFT) * result.times[frame]) / (result.times[last()] || 1);

function shape(parent, name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  parent.append(element);
}

/** Steps of 1, 2 or 5 times a power of ten, some five up to `end`. */
function ticks(end) {
  const power = 10 ** Math.floor(Math.log10(end / 5));
  const step = [1, 2, 5, 10].map((times) => times * power).find((step) => end / step <= 6);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, n) => [n * step, (n * step).toFixed(digits)]);
}

function draw() {
  const most = Math.max(...result.motion_curve, 1e-3) * 1.05;
  const down = (motion) => BOTTOM - ((BOTTOM - TOP) * motion) / most;
  const axes = at("axes");
  axes.replaceChildren();
  for (const [value, words] of ticks(most)) {
    shape(axes, "line", { class: "grid", x1: LEFT, x2: RIGHT, y1: down(value), y2: down(value) });
    shape(axes, "text", { class: "end", x: LEFT - 8, y: down(value) + 4 }, words);
  }
  for (const [value, words] of ticks(result.times[last()] || 1)) {
    const x = LEFT + ((RIGHT - LEFT) * value) / (result.times[last()] || 1);
    shape(axes, "line", { x1: x, x2: x, y1: BOTTOM, y2: BOTTOM + 5 });
    shape(axes, "text", { class: "middle", x, y: BOTTOM + 20 }, `${words} s`);
  }
  shape(axes, "path", { d: `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}M${LEFT} ${BARS.bottom}H${RIGHT}` });
  at("curve").setAttribute("points", result.motion_curve.map((motion, frame) => `${across(frame)},${down(motion)}`).join(" "));
  const peak = result.motion_curve.indexOf(Math.max(...result.motion_curve));
  at("curve").setAttribute(
    "aria-label",
    `Motion from the onset in ${result.times.length} frames, largest in frame ${peak}: ` +
      `${result.motion_curve[peak].toFixed(2)} pixels of a face 224 wide`,
  );
  drawAttention();
  EVENTS.forEach(place);
}

function drawAttention() {
  const group = at("attention");
  const weights = result.attention_over_time;
  group.replaceChildren();
  const said = result.moments.map((frames, n) => {
    const [first, end] = [frames[0], frames[frames.length - 1]];
    const height = ((BARS.bottom - BARS.top) * weights[n]) / Math.max(...weights, 1e-9);
    const x = Math.min(across(first), RIGHT - 6);
    shape(group, "rect", { x, y: BARS.bottom - height, width: Math.max(across(end) - x, 6), height });
    return `frames ${first} to ${end} ${(100 * weights[n]).toFixed(1)} %`;
  });
  group.setAttribute("aria-label", `Attention of the video branch: ${said.join(", ")}`);
}

/** Put a mark where it stands, and say so. */
function place(event) {
  const mark = at(event), frame = marks[event], x = across(frame);
  const seconds = result.times[frame].toFixed(2);
  mark.querySelector("line").setAttribute("x1", x);
  mark.querySelector("line").setAttribute("x2", x);
  const middle = Math.min(Math.max(x, 38), 800 - 38);
  mark.querySelector("rect").setAttribute("x", middle - 38);
  mark.querySelector("text").setAttribute("x", middle);
  mark.querySelector("text").textContent = `${event} ${frame}`;
  mark.setAttribute("aria-valuenow", frame);
  mark.setAttribute("aria-valuetext", `frame ${frame}, ${seconds} seconds`);
  for (const one of EVENTS) {
    at(one).setAttribute("aria-valuemin", one === "onset" ? 0 : marks[one === "apex" ? "onset" : "apex"]);
    at(one).setAttribute("aria-valuemax", one === "offset" ? last() : marks[one === "apex" ? "offset" : "apex"]);
  }
  at("span").setAttribute("x", across(marks.onset));
  at("span").setAttribute("width", across(marks.offset) - across(marks.onset));
  const moved = EVENTS.some((one) => marks[one] !== result[one]);
  at("events").textContent =
    EVENTS.map((one) => `${one} ${marks[one]} (${result.times[marks[one]].toFixed(2)} s)`).join(", ") +
    (moved ? ": moved, not predicted from yet." : result.spotted ? ": found." : ": given.") +
    " The curve is the motion from the onset, in pixels of a face 224 wide; the bars are attention to the frames that the model saw.";
}

function move(event, frame) {
  const mark = at(event);
  const [least, most] = ["aria-valuemin", "aria-valuemax"].map((name) => Number(mark.getAttribute(name)));
  marks[event] = Math.min(Math.max(frame, least), most);
  place(event);
}

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };

for (const event of EVENTS) {
  const mark = at(event);
  mark.addEventListener("keydown", (key) => {
    if (key.key === "Enter") return again();
    if (!(key.key in STEPS)) return;
    key.preventDefault();
    move(event, marks[event] + STEPS[key.key]);
  });
  mark.addEventListener("pointerdown", (pointer) => {
    mark.setPointerCapture(pointer.pointerId);
    mark.focus({ focusVisible: false });
    pointer.preventDefault();
  });
  mark.addEventListener("pointermove", (pointer) => {
    if (!mark.hasPointerCapture(pointer.pointerId)) return;
    const x = new DOMPoint(pointer.clientX, pointer.clientY).matrixTransform(at("chart").getScreenCTM().inverse()).x;
    const far = (frame) => Math.abs(across(frame) - x);
    move(event, result.times.reduce((best, _, frame) => (far(frame) < far(best) ? frame : best), 0));
  });
}

// What people press and drop -------------------------------------------------------------------------------------------

const again = () => ask(marks);
at("again").addEventListener("click", again);
at("spot").addEventListener("click", () => ask(null));
at("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 2) + "\n"], { type: "application/json" }));
  link.download = `${result.file.replace(/\.[^.]*$/, "")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
});
at("drop").addEventListener("submit", (event) => event.preventDefault());
at("files").addEventListener("click", () => (at("files").value = "")); // the same film may be chosen again
at("files").addEventListener("change", () => look(at("files").files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  look(event.dataTransfer.files);
});
