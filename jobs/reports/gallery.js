"use strict";
/* The gallery of a run's page. Rows come from files that call `pabClips`, since a page from a disk may load scripts but not
   fetch. All that rows say is written as text, and every link is made by `link`. */
(() => {
const section = document.getElementById("gallery");
const index = JSON.parse(section.dataset.index);
const at = Object.fromEntries(index.columns.map((name, place) => [name, place]));
const form = document.getElementById("filters"), cards = document.getElementById("cards");
const told = document.getElementById("told"), pages = document.getElementById("pages");
const dialog = document.getElementById("clip");
const FILTERS = ["outcome", "model", "size", "broadcast", "alarm"];
const files = [], loads = [], arrived = [], texts = new Map();
let latest = 0, found = null, page = 0, opened = -1;

window.pabClips = (number, rows) => { files[number] = rows; arrived[number]?.(); };

function load(number) {
  loads[number] ??= new Promise((resolve, reject) => {
    arrived[number] = resolve;
    const script = document.createElement("script");
    script.src = index.files[number];
    script.onerror = () => { loads[number] = undefined; reject(new Error(`${number + 1} of ${index.files.length}`)); };
    document.head.append(script);
  });
  return loads[number];
}

/* A path below the run's folder, or a link that was signed. Nothing else becomes a link, whatever a row says. */
function link(path) {
  return /^https?:\/\//.test(path) ? path : "../" + path.split("/").map(encodeURIComponent).join("/");
}

function make(tag, kind, text, ...inside) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== null && text !== undefined) element.textContent = text;
  element.append(...inside);
  return element;
}

const row = place => files[Math.floor(place / index.perFile)][place % index.perFile];
const size = one => [one[at.num_frames], one[at.height], one[at.width]].map(value => value ?? "?").join(" x ");
const number = (value, digits) => value === null ? null : value.toFixed(digits);
const many = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
function decibels(one) { return one[at.identical] ? "same frames" : one[at.psnr_db] === null ? null : number(one[at.psnr_db], 1) + " dB"; }

/* What the user asks for, in the form and after the # of the address. */
function asked() {
  const given = Object.fromEntries(["search", "sort", "shown", ...FILTERS].map(name => [name, form.elements[name]?.value ?? ""]));
  return { ...given, samples: form.elements.samples.checked, words: given.search.toLowerCase().split(/\s+/).filter(Boolean) };
}
function remember(clip) {
  const what = asked(), words = new URLSearchParams();
  for (const name of ["search", ...FILTERS]) if (what[name]) words.set(name, what[name]);
  if (what.sort !== "manifest") words.set("sort", what.sort);
  if (what.samples) words.set("samples", "1");
  if (page) words.set("page", page + 1);
  if (clip) words.set("clip", clip);
  history.replaceState(null, "", "#" + words);
}
function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of ["search", "sort", ...FILTERS]) {
    const control = form.elements[name];
    if (control && words.has(name)) control.value = words.get(name);
    if (control?.tagName === "SELECT" && control.selectedIndex < 0) control.selectedIndex = 0;
  }
  form.elements.samples.checked = words.has("samples");
  page = Math.max(0, (Number.parseInt(words.get("page"), 10) || 1) - 1);
  return words.get("clip");
}

function matches(one, what, place) {
  if (FILTERS.some(name => {
    if (!what[name]) return false;
    if (name === "alarm") return !(one[at.alarms] ?? []).includes(what.alarm);
    return what[name] !== (name === "size" ? size(one) : one[at[name]]);
  })) return false;
  if (what.samples && one[at.without_reuse] === null) return false;
  if (!what.words.length) return true;
  if (!texts.has(place)) {
    texts.set(place, ["clip_id", "prompt", "negative_prompt", "seed", "error"].map(name => one[at[name]] ?? "").join("\n").toLowerCase());
  }
  return what.words.every(word => texts.get(place).includes(word));
}

/* Sorting: what is not known comes last, equal ones stay in the manifest's order. */
const likeness = one => one[at.identical] ? Infinity : one[at.psnr_db];
const KEYS = {
  name: [one => one[at.clip_id], 1], psnr: [likeness, 1], slowest: [one => one[at.elapsed_s], -1],
  seed: [one => one[at.seed] === null ? null : BigInt(one[at.seed]), 1], alarms: [one => one[at.alarms] === null ? null : one[at.alarms].length, -1],
  prompt: [one => one[at.prompt], 1],
};
function sorted(places, sort) {
  if (!KEYS[sort]) return places;
  const [key, sign] = KEYS[sort], keyed = places.map(place => [place, key(row(place))]);
  keyed.sort(([first, a], [second, b]) => {
    if (a === null || b === null) return (a === null) - (b === null) || first - second;
    return a === b ? first - second : (a < b ? -sign : sign);
  });
  return keyed.map(([place]) => place);
}

async function show() {
  const turn = ++latest, what = asked();
  const whole = what.words.length || what.samples || what.sort !== "manifest" || FILTERS.some(name => what[name]);
  const each = Number(what.shown);
  try {
    if (whole) {
      let done = 0;
      await Promise.all(index.files.map((_, file) => load(file).then(() => {
        done += 1;
        if (turn === latest && done < index.files.length) told.textContent = `reading clips: ${done} of ${many(index.files.length, "file")}`;
      })));
      if (turn !== latest) return;
      found = [];
      files.forEach((rows, file) => rows.forEach((one, inside) => {
        if (matches(one, what, file * index.perFile + inside)) found.push(file * index.perFile + inside);
      }));
      found = sorted(found, what.sort);
    } else { found = null; }
    const count = found ? found.length : index.clips, last = Math.max(0, Math.ceil(count / each) - 1);
    page = Math.min(page, last);
    const range = Array.from({ length: Math.max(0, Math.min(each, count - page * each)) }, (_, order) => page * each + order);
    if (!found) await Promise.all([...new Set(range.map(order => Math.floor(order / index.perFile)))].map(load));
    if (turn !== latest) return;
    watcher.disconnect();
    cards.replaceChildren(...range.map(order => card(found ? found[order] : order)));
    told.textContent = count === 0 ? (index.clips ? "no clip is like that" : "this run has no clip")
      : `${(page * each + 1).toLocaleString("en")} to ${(page * each + range.length).toLocaleString("en")} of ${many(count, "clip")}`
        + (found && count !== index.clips ? `, of ${index.clips.toLocaleString("en")} in the run` : "");
    turnPages(last);
  } catch (error) {
    told.textContent = `the clips cannot be read (file ${error.message}); keep the folder gallery beside this page, or make the report again`;
  }
}

function turnPages(last) {
  const button = (text, to, name) => {
    const made = make("button", "", text);
    made.type = "button"; made.disabled = to < 0 || to > last || to === page; made.setAttribute("aria-label", name);
    made.addEventListener("click", () => { page = to; remember(); show(); section.scrollIntoView(); });
    return made;
  };
  pages.replaceChildren(...(last ? [
    button("\u00ab", 0, "first page"), button("\u2039 previous", page - 1, "previous page"),
    make("span", "", `page ${(page + 1).toLocaleString("en")} of ${(last + 1).toLocaleString("en")}`),
    button("next \u203a", page + 1, "next page"), button("\u00bb", last, "last page"),
  ] : []));
}

/* Pictures and videos are loaded when they come near the window. A clip plays under the pointer, or all of them play. */
const watcher = new IntersectionObserver(seen => {
  for (const { target, isIntersecting } of seen) {
    if (isIntersecting && !target.dataset.near) {
      target.dataset.near = "1";
      const one = row(Number(target.dataset.place));
      if (one[at.poster] !== null) target.poster = link(one[at.poster]); else target.preload = "metadata";
      target.src = link(one[at.video]);
    }
    if (form.elements.play.checked) isIntersecting ? play(target) : target.pause();
  }
}, { rootMargin: "300px" });
function play(video) { video.play().catch(() => {}); }
function rest(video) {
  if (form.elements.play.checked) return;
  video.pause();
  // Its picture is shown again.
  if (video.poster) video.load(); else video.currentTime = 0;
}

function card(place) {
  const one = row(place), shot = make("button", "shot");
  shot.type = "button"; shot.setAttribute("aria-label", `open ${one[at.clip_id]}`);
  if (one[at.video] !== null) {
    const video = make("video");
    video.muted = video.loop = video.playsInline = true; video.preload = "none"; video.dataset.place = place;
    shot.append(video);
    for (const come of ["pointerenter", "focus"]) shot.addEventListener(come, () => play(video));
    for (const go of ["pointerleave", "blur"]) shot.addEventListener(go, () => rest(video));
    watcher.observe(video);
  } else {
    shot.append(make("span", "why" + (one[at.error] === null ? "" : " bad"), one[at.error] ?? one[at.outcome]));
  }
  shot.addEventListener("click", () => open(place));
  const badges = make("span", "badges");
  if (one[at.outcome] !== "rendered") badges.append(make("span", "badge bad", one[at.outcome]));
  for (const alarm of one[at.alarms] ?? []) badges.append(make("span", "badge bad", alarm));
  if (one[at.rendered] !== null && one[at.rendered] !== one[at.broadcast]) badges.append(make("span", "badge bad", `by ${one[at.rendered]}`));
  if (decibels(one)) badges.append(make("span", "badge", decibels(one)));
  if (one[at.without_reuse] !== null) badges.append(make("span", "badge", "side by side"));
  const facts = [one[at.model], size(one), one[at.broadcast], one[at.seed] === null ? null : `seed ${one[at.seed]}`];
  return make("article", "card", null, shot, badges, make("h3", "", one[at.clip_id]), make("p", "prompt", one[at.prompt]),
    make("p", "facts", facts.filter(fact => fact !== null).join(" \u00b7 ")));
}

/* One clip, large: its videos, all that is known of it, and where its files are. */
function player(path, caption) {
  const video = make("video");
  video.src = link(path); video.loop = video.playsInline = true; video.preload = "auto"; video.controls = true;
  return make("figure", "", null, video, make("figcaption", "", caption));
}
function together(pair) {
  const [first, second] = pair.map(figure => figure.querySelector("video"));
  second.muted = true;
  first.addEventListener("play", () => { second.currentTime = first.currentTime; play(second); });
  first.addEventListener("pause", () => second.pause());
  first.addEventListener("seeked", () => { second.currentTime = first.currentTime; });
  first.addEventListener("timeupdate", () => {
    if (Math.abs(first.currentTime - second.currentTime) > 0.1) second.currentTime = first.currentTime;
  });
  second.controls = false;
}
function open(place) {
  const one = row(place), order = found ? found.indexOf(place) : place, count = found ? found.length : index.clips;
  opened = place;
  const videos = make("div", "pair");
  if (one[at.video] !== null) {
    const own = player(one[at.video], one[at.without_reuse] === null ? "" : `with reuse, ${one[at.rendered] ?? one[at.broadcast]}`);
    const pair = one[at.without_reuse] === null ? [own] : [own, player(one[at.without_reuse], "without reuse, same seed")];
    if (pair.length === 2) together(pair);
    videos.append(...pair);
    play(own.querySelector("video"));
  }
  const facts = make("dl", "known");
  for (const [name, value] of [
    ["status", one[at.outcome]], ["why", one[at.error]], ["seed", one[at.seed]], ["model", one[at.model]],
    ["frames x height x width", size(one)], ["frames per second", one[at.fps]], ["steps", one[at.num_steps]],
    ["guidance scale", one[at.guidance_scale]], ["broadcast", one[at.broadcast]],
    ["rendered with", one[at.rendered] === one[at.broadcast] ? null : one[at.rendered]],
    ["PSNR", decibels(one)], ["SSIM", number(one[at.ssim], 4)], ["VMAF", number(one[at.vmaf], 1)],
    ["alarms", one[at.alarms] === null ? null : one[at.alarms].join(", ") || "none"],
    ["seconds", number(one[at.elapsed_s], 1)], ["digest", one[at.digest]],
  ]) if (value !== null) facts.append(make("div", "", null, make("dt", "", name), make("dd", "", value)));
  const links = make("p", "links");
  for (const [name, path] of [["download", at.video], ["without reuse", at.without_reuse], ["record", at.record],
    ["failure", at.failure], ["log", at.log], ["job", at.job]]) {
    if (one[path] === null) continue;
    const to = make("a", "", name);
    to.href = link(one[path]);
    if (name === "download") to.download = `${one[at.clip_id]}.mp4`;
    links.append(to);
  }
  const step = (text, by, name) => {
    const made = make("button", "", text);
    made.type = "button"; made.disabled = order + by < 0 || order + by >= count; made.setAttribute("aria-label", name);
    made.addEventListener("click", () => go(by));
    return made;
  };
  const close = make("button", "", "close");
  close.type = "button"; close.addEventListener("click", () => dialog.close());
  const bar = make("div", "bar", null, make("h2", "", one[at.clip_id]), step("\u2039", -1, "previous clip"), step("\u203a", 1, "next clip"), close);
  const negative = one[at.negative_prompt] ? [make("p", "quiet", `negative: ${one[at.negative_prompt]}`)] : [];
  dialog.replaceChildren(bar, videos, make("p", "", one[at.prompt]), ...negative, facts, links);
  if (!dialog.open) dialog.showModal();
  remember(`${place + 1}`);
}
async function go(by) {
  const order = (found ? found.indexOf(opened) : opened) + by;
  if (order < 0 || order >= (found ? found.length : index.clips)) return;
  const place = found ? found[order] : order;
  await load(Math.floor(place / index.perFile));
  open(place);
}
dialog.addEventListener("close", () => { dialog.replaceChildren(); remember(); });
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", event => {
  if (event.target.tagName !== "VIDEO" && event.key === "ArrowRight") go(1);
  if (event.target.tagName !== "VIDEO" && event.key === "ArrowLeft") go(-1);
});

let typed;
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", event => {
  clearTimeout(typed);
  if (event.target.name === "play") {
    for (const video of cards.querySelectorAll("video")) form.elements.play.checked ? watcher.unobserve(video) || watcher.observe(video) : rest(video);
    return;
  }
  typed = setTimeout(() => { page = 0; remember(); show(); }, event.target.name === "search" ? 150 : 0);
});
(async () => {
  const clip = Number.parseInt(recall(), 10) - 1;
  await show();
  if (clip >= 0 && clip < index.clips) { await load(Math.floor(clip / index.perFile)).catch(() => {}); if (files[Math.floor(clip / index.perFile)]) open(clip); }
})();
})();
