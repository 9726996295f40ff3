// The study page: scroll, windows, class maps, the strip. Pictures come from the server and are kept while one looks.
import { $, acknowledge, all, announce, ask, live, onKeys, recall, remember } from "./common.js";

const uid = document.body.dataset.uid;
const canvas = $("#picture");
const MAX_KEPT = 160;
const AHEAD = 4;   // neighbours fetched on each side

if (canvas) {
  const numbers = JSON.parse($("#numbers").textContent);
  const limits = JSON.parse($("#thresholds").textContent);
  const count = numbers.z_mm.length;
  const slider = $("#slider");
  slider.max = count - 1;
  let at = Math.min(numbers.key, count - 1), lastOverlay = "any";
  const windowName = () => $("input[name=window]:checked").value;
  const overlay = () => $("input[name=overlay]:checked").value;

  // Pictures, the newest kept. What is asked for twice is fetched once.
  const kept = new Map();
  const address = (n) => `/studies/${uid}/slices/${n}.png?window=${windowName()}&overlay=${overlay()}`;
  function picture(n) {
    const key = address(n);
    if (kept.has(key)) {
      const found = kept.get(key);
      kept.delete(key);
      kept.set(key, found);
      return found;
    }
    const made = fetch(key, { credentials: "same-origin" }).then(async (answer) => {
      if (answer.status === 401) location.assign("/login");
      if (!answer.ok) throw new Error((await answer.json()).error);
      return createImageBitmap(await answer.blob());
    });
    kept.set(key, made);
    made.catch(() => kept.delete(key));
    if (kept.size > MAX_KEPT) {
      const [oldest, image] = kept.entries().next().value;
      kept.delete(oldest);
      image.then((bitmap) => bitmap.close(), () => {});
    }
    return made;
  }

  async function draw() {
    const n = at, key = address(n);
    tell();
    try {
      const bitmap = await picture(n);
      if (key !== address(at)) return;   // scrolled on meanwhile
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      canvas.dataset.shown = key;
    } catch (error) {
      if (key !== address(at)) return;
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      canvas.dataset.shown = "";
      $("#where").textContent += ` — ${error.message}`;
    }
    for (let step = 1; step <= AHEAD; step += 1) {
      for (const other of [n + step, n - step]) if (other >= 0 && other < count) picture(other).catch(() => {});
    }
  }

  function tell() {
    const z = numbers.z_mm[at], level = $("input[name=window]:checked").dataset.level;
    $("#where").textContent = `${at + 1} / ${count}${z === null ? "" : `   z ${z.toFixed(1)} mm`}`;
    $("#level").textContent = `${windowName()} ${level}`;
    $("#mapped").textContent = overlay() === "none" ? "" : `class map: ${overlay()}`;
    slider.value = at;
    slider.setAttribute("aria-valuetext", `slice ${at + 1} of ${count}, p(any) ${numbers.probability.any[at].toFixed(2)}`);
    canvas.setAttribute("aria-label", `Slice ${at + 1} of ${count}, window ${windowName()}, p(any) ${numbers.probability.any[at].toFixed(2)}. Not for diagnosis.`);
    cursor?.setAttribute("x", at);
    $("#legend").replaceChildren(...shown.map((label) => {
      const item = document.createElement("span");
      item.className = label;
      item.textContent = `${label} ${numbers.probability[label][at].toFixed(2)}`;
      return item;
    }));
    if (overlay() !== "none") $("#legend").append("Class map: where the network looked, not how sure it was.");
  }
  const go = (n) => { at = Math.min(count - 1, Math.max(0, n)); draw(); };

  // The strip: p(any) as bars, subtypes that reach their threshold somewhere as lines, the threshold of any as a rule.
  const SVG = "http://www.w3.org/2000/svg";
  const strip = $("#strip");
  const shape = (name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    strip.append(made);
    return made;
  };
  const shown = ["any", ...Object.keys(numbers.probability).filter((label) => label !== "any" && numbers.probability[label].some((p) => p >= (limits[label] ?? 0.5)))];
  strip.setAttribute("viewBox", `0 0 ${count} 100`);
  const cursor = shape("rect", { class: "cursor", x: at, y: 0, width: 1, height: 100 });
  numbers.probability.any.forEach((p, n) => {
    shape("rect", { class: p >= (limits.any ?? 0.5) ? "bar high" : "bar", x: n + 0.1, y: 100 - 96 * p, width: 0.8, height: 96 * p + 0.5 });
  });
  for (const label of shown.slice(1)) {
    shape("polyline", { class: `line ${label}`, points: numbers.probability[label].map((p, n) => `${n + 0.5},${100 - 96 * p}`).join(" ") });
  }
  if (limits.any !== undefined) shape("line", { class: "limit", x1: 0, x2: count, y1: 100 - 96 * limits.any, y2: 100 - 96 * limits.any });
  numbers.series.forEach((series, n) => {
    if (n && series !== numbers.series[n - 1]) shape("line", { class: "border", x1: n, x2: n, y1: 0, y2: 100 });
  });
  const pick = (event) => {
    const box = strip.getBoundingClientRect();
    go(Math.floor(((event.clientX - box.left) / box.width) * count));
  };
  strip.addEventListener("pointerdown", (event) => { strip.setPointerCapture(event.pointerId); pick(event); });
  strip.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
  slider.addEventListener("input", () => go(Number(slider.value)));

  // Wheel and touch.
  let rolled = 0;
  const STEP = 40;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    rolled += event.deltaMode === 1 ? event.deltaY * STEP : event.deltaY;
    const steps = Math.trunc(rolled / STEP);
    if (steps) { rolled -= steps * STEP; go(at + steps); }
  }, { passive: false });
  let touched = null;
  canvas.addEventListener("pointerdown", (event) => { touched = { y: event.clientY, at }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (touched && event.buttons) {
      const n = touched.at + Math.round((event.clientY - touched.y) / 8);
      if (n !== at) go(n);
    }
  });
  canvas.addEventListener("pointerup", () => { touched = null; });

  const choose = (name, value) => {
    const input = all(`input[name=${name}]`).find((one) => one.value === value);
    if (input) { input.checked = true; draw(); }
  };
  for (const input of all("input[name=window], input[name=overlay]")) input.addEventListener("change", () => {
    if (input.name === "window") remember("window", input.value);
    else if (input.value !== "none") lastOverlay = input.value;
    draw();
  });
  const windows = all("input[name=window]").map((input) => input.value);
  const overlays = all("input[name=overlay]").map((input) => input.value);
  const jump = (step) => {
    for (let n = at + step; n >= 0 && n < count; n += step) {
      if (numbers.probability.any[n] >= (limits.any ?? 0.5)) { go(n); return; }
    }
    announce("No further slice above the threshold.");
  };
  const moves = {
    ArrowDown: () => go(at + 1), ArrowUp: () => go(at - 1), j: () => go(at + 1), k: () => go(at - 1),
    PageDown: () => go(at + 5), PageUp: () => go(at - 5), Home: () => go(0), End: () => go(count - 1),
    g: () => go(numbers.key), "]": () => jump(1), "[": () => jump(-1),
    o: () => choose("overlay", overlay() === "none" ? lastOverlay : "none"),
    0: () => choose("overlay", "none"),
    l: () => {
      const next = overlays[Math.max(1, (overlays.indexOf(overlay()) + 1) % overlays.length)];
      lastOverlay = next;
      choose("overlay", next);
    },
  };
  windows.forEach((name, i) => { moves[String(i + 1)] = () => { remember("window", name); choose("window", name); }; });
  onKeys({ ...moves, ...common() });
  const preferred = recall("window");
  if (preferred && windows.includes(preferred)) choose("window", preferred);
  else draw();
} else {
  onKeys(common());
}

function common() {
  return {
    a: () => act("acknowledge"), u: () => act("undo"),
    c: () => $("#text").focus(), n: () => { next().catch(() => {}); }, Escape: () => location.assign("/"),
  };
}

// The first study of the worklist that is raised and is not this one.
async function next() {
  const { studies } = await ask("/studies");
  const found = studies.find((study) => study.is_raised && study.study_uid !== uid);
  if (found) location.assign(`/studies/${found.study_uid}`);
  else announce("No other study is raised.");
}

async function act(what, id) {
  const path = `/studies/${uid}/acknowledge`;
  if (what === "acknowledge" && $("[data-do=acknowledge]")) {
    if (!await acknowledge(uid, $(".report"), refresh)) return;
  } else if (what === "undo" && $("[data-do=undo]")) await ask(path, { method: "DELETE" });
  else if (what === "requeue") await ask(`/deliveries/${id}/requeue`, { method: "POST" });
  else return;
  await refresh();
  announce(what === "acknowledge" ? "Acknowledged" : "Done");
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  event.preventDefault();
  act(button.dataset.do, button.dataset.id).catch(() => {});
});
$("#write").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("#text").value.trim();
  if (!text) return;
  await ask(`/studies/${uid}/comments`, { method: "POST", body: { text } });
  $("#text").value = "";
  await refresh();
});

// What is written beside the picture is fetched anew; the picture stays. A new score needs the page to be loaded again.
async function refresh() {
  const answer = await fetch(location.pathname, { headers: { Accept: "text/html" }, credentials: "same-origin" });
  if (!answer.ok || answer.redirected) { location.reload(); return; }
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const same = $("#numbers")?.textContent === $("#numbers", fresh)?.textContent;
  $("#stale").hidden = same;
  const draft = $("#text").value, typing = document.activeElement === $("#text");
  if (typing || draft) return;
  const open = $("details", $(".report"))?.open;
  const write = $("#write");
  $(".report").replaceChildren(...$(".report", fresh).childNodes);
  $("#write").replaceWith(write);
  if (open) $("details", $(".report")).open = true;
  $("#main").className = $("#main", fresh).className;
}
let timer = 0;
live((changed) => {
  if (changed !== uid) return;
  clearTimeout(timer);
  timer = setTimeout(() => refresh().catch(() => {}), 300);
});
