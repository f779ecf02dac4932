"use strict";
// Everything that a run says becomes a text node here: nothing of it is ever read as HTML.
const runs = JSON.parse(document.getElementById("data").textContent).runs;
const by = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function picture(entry, alt, src = entry.src) {
  return make("img", { src, alt, width: entry.w, height: entry.h, loading: "lazy", decoding: "async" });
}

// -- photos, previews, settings: a column a run

function columns(part, fill) {
  const place = document.querySelector(`.runs[data-part="${part}"]`);
  for (const run of runs) {
    const column = make("div", {}, ...(runs.length > 1 ? [make("h3", {}, run.name)] : []));
    column.append(...fill(run));
    place.append(column);
  }
}

function photosOf(run) {
  if (run.note) return [make("p", {}, run.note)];
  if (!run.photos.length) return [make("p", {}, "The photos are not here any more.")];
  const cells = run.photos.map((photo) => {
    const image = picture(photo, `photo ${photo.name} of the ${run.word}`, photo.masked || photo.src);
    image.dataset.plain = photo.src;
    image.dataset.masked = photo.masked || photo.src;
    const text = photo.masked ? photo.name : `${photo.name}, no mask`;
    return make("figure", { class: "photo" }, image, make("figcaption", {}, text));
  });
  return [make("div", { class: "row" }, ...cells)];
}

function showMasks() {
  for (const image of document.querySelectorAll("img[data-masked]"))
    image.src = by("masks").checked ? image.dataset.masked : image.dataset.plain;
}

function previewsOf(run) {
  if (!run.previews.length) return [make("p", {}, "No previews.")];
  const last = run.previews.length - 1;
  const image = make("img", { alt: "" });
  const label = make("output", {});
  const slider = make("input", {
    type: "range", min: 0, max: last, value: last, class: "slider", "aria-label": `step of ${run.name}`,
  });
  const show = () => {
    const entry = run.previews[slider.value];
    image.src = entry.src;
    image.alt = `previews of ${run.name} at step ${entry.step}`;
    label.textContent = `step ${entry.step}`;
    slider.setAttribute("aria-valuetext", `step ${entry.step}`);
  };
  slider.addEventListener("input", show);
  show();
  return [slider, label, image];
}

function curveOf(run) {
  if (run.curve.length < 2) return [];
  const [steps, losses] = [0, 1].map((i) => run.curve.map((point) => point[i]));
  const [low, high, end] = [Math.min(...losses), Math.max(...losses), Math.max(...steps)];
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "polyline");
  const text = `loss over ${end} steps, from ${losses[0].toFixed(3)} to ${losses.at(-1).toFixed(3)}`;
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", text);
  const spot = ([step, loss]) => `${(100 * step) / end},${39 - (38 * (loss - low)) / (high - low || 1)}`;
  line.setAttribute("points", run.curve.map(spot).join(" "));
  svg.append(line);
  return [make("p", {}, text), svg];
}

function table(rows) {
  const cells = rows.map((row) => make("tr", {}, ...row.map((text) => make("td", {}, text))));
  return make("table", {}, make("tbody", {}, ...cells));
}

function settingsOf(run) {
  return [
    ...(run.marks.length ? [table(run.marks)] : [make("p", {}, "Not measured; bash scripts/eval.sh does that.")]),
    ...run.commands.map((command) => make("pre", {}, command)),
    ...curveOf(run),
    make("details", {}, make("summary", {}, `all ${run.settings.length} settings`), table(run.settings)),
  ];
}

// -- the drawn pictures

const cards = []; // what is shown, in its order: {run, entry}

function chosen(entry) {
  const words = by("words").value.toLowerCase();
  return ["style", "place"].every((name) => !by(name).value || by(name).value === entry[name])
    && (!by("seed").value || Number(by("seed").value) === entry.number)
    && entry.prompt.toLowerCase().includes(words);
}

function card(run, entry, best = false) {
  const place = cards.push({ run, entry }) - 1;
  const alt = `${entry.text}, drawn by ${run.name}, seed ${entry.number}`;
  const button = make("button", { type: "button", onclick: () => open(place) }, picture(entry, alt));
  const marks = entry.marks.map(([name, value]) => `${name} ${value}`).join("  ");
  return make("figure", { class: "card" }, button, make("figcaption", {}, entry.text,
    make("div", { class: best ? "mark best" : "mark" }, marks || `seed ${entry.number}`)));
}

// The pictures of one prompt and seed, a run each; the run that draws it best by text x identity.
function bestOf(entries) {
  const score = (entry) => {
    const marks = Object.fromEntries(entry ? entry.marks : []);
    return marks.clip_t_cos && marks.dino_i ? marks.clip_t_cos * marks.dino_i : -1;
  };
  const scores = entries.map(score);
  const most = Math.max(...scores);
  return entries.length > 1 && most > 0 ? scores.indexOf(most) : -1;
}

function showSamples() {
  const place = by("samples");
  cards.length = 0;
  if (runs.length === 1) {
    place.className = "one";
    place.replaceChildren(...runs[0].samples.filter(chosen).map((entry) => card(runs[0], entry)));
  } else {
    place.className = "many";
    const keyed = new Map();
    runs.forEach((run, number) => run.samples.filter(chosen).forEach((entry) => {
      const key = JSON.stringify([entry.prompt, entry.number]);
      if (!keyed.has(key)) keyed.set(key, Array(runs.length).fill(null));
      keyed.get(key)[number] ||= entry;
    }));
    place.replaceChildren(...[...keyed.values()].map((entries) => {
      const best = bestOf(entries);
      return make("div", { class: "pair" }, ...entries.map((entry, number) =>
        entry ? card(runs[number], entry, number === best) : make("p", {}, `not drawn by ${runs[number].name}`)));
    }));
  }
  const all = runs.reduce((sum, run) => sum + run.samples.length, 0);
  by("count").textContent = `${cards.length} of ${all} pictures`;
}

function fillFilter(id, title, values) {
  const known = [...new Set(values)].sort((a, b) => (a > b ? 1 : -1));
  by(id).append(make("option", { value: "" }, `every ${title}`),
    ...known.map((value) => make("option", { value }, String(value))));
  by(id).addEventListener("change", showSamples);
}

// -- one picture in large

let shown = 0;

function open(place) {
  if (!cards.length) return;
  shown = (place + cards.length) % cards.length;
  const { run, entry } = cards[shown];
  by("large-picture").src = entry.src;
  by("large-picture").alt = entry.text;
  by("large-text").textContent = `${run.name}: ${entry.prompt}`;
  by("large-command").textContent = entry.command || "";
  by("copy").hidden = !entry.command;
  by("large-facts").replaceChildren(...[...entry.marks, ...entry.facts].flatMap(
    ([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  if (!by("large").open) by("large").showModal();
}

async function copy() {
  await navigator.clipboard.writeText(by("large-command").textContent);
  by("copy").textContent = "copied";
  setTimeout(() => { by("copy").textContent = "copy the command"; }, 1500);
}

document.addEventListener("keydown", (event) => {
  if (by("large").open) {
    if (event.key === "ArrowLeft") open(shown - 1);
    if (event.key === "ArrowRight") open(shown + 1);
    return;
  }
  if (["INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "checkbox") return;
  if (event.key === "m") { by("masks").checked = !by("masks").checked; showMasks(); }
  if (event.key === "/") { event.preventDefault(); by("words").focus(); }
});

columns("photos", photosOf);
columns("previews", previewsOf);
columns("settings", settingsOf);
const entries = runs.flatMap((run) => run.samples);
fillFilter("style", "style", entries.map((entry) => entry.style));
fillFilter("place", "place", entries.map((entry) => entry.place));
fillFilter("seed", "seed", entries.map((entry) => entry.number));
by("about").textContent = `${runs.length > 1 ? `${runs.length} runs side by side` : `a ${runs[0].word}`}, ${entries.length} pictures`;
by("masks").addEventListener("change", showMasks);
by("words").addEventListener("input", showSamples);
by("filters").addEventListener("submit", (event) => event.preventDefault());
by("size").addEventListener("input", () => by("samples").style.setProperty("--side", `${by("size").value}px`));
by("before").addEventListener("click", () => open(shown - 1));
by("after").addEventListener("click", () => open(shown + 1));
by("copy").addEventListener("click", copy);
showSamples();
