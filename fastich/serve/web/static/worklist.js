// Keeps the worklist fresh without a reload: rows that changed are put in place, the others are not touched.
import { $, acknowledge, all, announce, ask, live, now, onKeys, recall, remember, setNow, tick } from "./common.js";

const lists = { 1: $("#raised"), 0: $("#rest") };
const WAIT_MS = 300;   // events that come together become one request
const FALLBACK_MS = 60000;

function make(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

// Puts every row where the server has it; keeps the element, and with it the focus, where nothing changed.
function place(rows) {
  const focused = document.activeElement?.closest?.("li.study");
  const focus = focused && { uid: focused.dataset.uid, what: document.activeElement.dataset.focus };
  const old = new Map(all("li.study").map((row) => [row.dataset.uid, row]));
  const next = { 1: null, 0: null };
  for (const { uid, mark, html } of rows) {
    let row = old.get(uid);
    old.delete(uid);
    if (row?.dataset.mark !== mark) {
      const fresh = make(html);
      if (row) row.replaceWith(fresh);
      row = fresh;
    }
    const list = lists[row.dataset.raised];
    const at = next[row.dataset.raised]?.nextElementSibling ?? (next[row.dataset.raised] ? null : list.firstElementChild);
    if (row !== at) list.insertBefore(row, at);
    next[row.dataset.raised] = row;
  }
  for (const gone of old.values()) gone.remove();
  if (focus && !focused.isConnected) {
    const row = find(focus.uid);
    (row && ($(`[data-focus="${focus.what}"]`, row) ?? $("a.open", row)))?.focus({ preventScroll: true });
  }
}

const find = (uid) => $(`li.study[data-uid="${CSS.escape(uid)}"]`);

let known = new Set(all("#raised > li.study").map((row) => row.dataset.uid));
function tellRaised() {
  const found = all("#raised > li.study");
  const fresh = found.filter((row) => !known.has(row.dataset.uid));
  if (fresh.length) announce(`${fresh.length} more raised: ${$("article", fresh[0]).getAttribute("aria-label")}`);
  known = new Set(found.map((row) => row.dataset.uid));
  document.title = (found.length ? `(${found.length}) ` : "") + "Worklist · fastich";
}

let asking = false, again = false, timer = 0;
async function refresh() {
  if (asking) { again = true; return; }
  asking = true;
  try {
    const found = await ask("/worklist");
    setNow(found.now);
    place(found.rows);
    $("#summary").innerHTML = found.summary;
    tick();
    tellRaised();
    filter();
  } catch { /* the mark says that the page is not live; the next event or minute tries again */ } finally {
    asking = false;
    if (again) { again = false; soon(); }
  }
}
function soon() { clearTimeout(timer); timer = setTimeout(refresh, WAIT_MS); }

// What is looked for hides rows, but never one that is raised and that nobody has seen: those stay and say why.
const form = $("#filter");
function filter() {
  const words = $("#search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const show = form.elements.show.value, since = Number($("#since").value);
  let hidden = 0, kept = 0, seen = 0;
  for (const row of all("li.study")) {
    const text = row.textContent.toLowerCase();
    const matches = words.every((word) => text.includes(word));
    const isSeen = row.dataset.seen === "1";
    const fits = { open: !isSeen, all: true, "not evaluated": ["not evaluated", "failed"].includes(row.dataset.verdict), seen: isSeen }[show];
    const recent = !since || now() - Number(row.dataset.arrived) <= since;
    const wanted = matches && fits && recent;
    const isRaised = row.dataset.raised === "1";
    row.hidden = !wanted && !isRaised;
    row.classList.toggle("unasked", !wanted && isRaised);
    hidden += row.hidden;
    kept += !wanted && isRaised;
    seen += row.hidden && isSeen;
  }
  const parts = [];
  if (hidden) parts.push(`${hidden} not shown${seen ? `, ${seen} of them acknowledged` : ""}`);
  if (kept) parts.push(`${kept} raised and not acknowledged shown all the same`);
  $("#shown").classList.toggle("kept", kept > 0);
  if ($("#shown").value !== parts.join("; ")) $("#shown").value = parts.join("; ");
  for (const group of all(".group")) group.classList.toggle("bare", !$("li.study:not([hidden])", group));
}
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", filter);

// What a row can do.
let about = null;
function comment(row) {
  about = row.dataset.uid;
  $("#comment-about").textContent = $("a.open", row).textContent;
  $("#comment-text").value = "";
  $("#comment-dialog").showModal();
}
async function act(row, what) {
  if (!row) return;
  const name = $("a.open", row).textContent, path = `/studies/${row.dataset.uid}/acknowledge`;
  if (what === "comment") comment(row);
  if (what === "acknowledge" && row.dataset.seen === "0") {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    if (!await acknowledge(row.dataset.uid, row, refresh)) return;
    announce(`Acknowledged: ${name}`);
    await refresh();
    if (next?.isConnected) $("a.open", next)?.focus({ preventScroll: true });
  }
  if (what === "undo" && row.dataset.seen === "1") {
    await ask(path, { method: "DELETE" });
    announce(`Not acknowledged any more: ${name}`);
    await refresh();
  }
}
$("#main").addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  event.preventDefault();
  act(button.closest("li.study"), button.dataset.do).catch(() => {});
});
$("#comment-cancel").addEventListener("click", () => $("#comment-dialog").close());
$("#comment-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("#comment-text").value.trim();
  if (!text) return;
  await ask(`/studies/${about}/comments`, { method: "POST", body: { text } });
  $("#comment-dialog").close();
  await refresh();
});

// Keys.
const visible = () => all("li.study:not([hidden])");
const current = () => document.activeElement?.closest?.("li.study") ?? null;
function move(step) {
  const rows = visible(), at = rows.indexOf(current());
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  if (!next) return;
  $("a.open", next).focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}
const onRow = (what) => () => { act(current(), what).catch(() => {}); };
onKeys({
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
  a: onRow("acknowledge"), u: onRow("undo"), c: onRow("comment"), "/": () => $("#search").focus(),
});

// What a flag is worth: the same as predictive_values.ppv_npv on the server.
export function worth(sensitivity, specificity, prevalence) {
  const share = (right, wrong) => (right + wrong > 0 ? right / (right + wrong) : null);
  const hits = sensitivity * prevalence, alarms = (1 - specificity) * (1 - prevalence);
  const misses = (1 - sensitivity) * prevalence, rejections = specificity * (1 - prevalence);
  return { ppv: share(hits, alarms), npv: share(rejections, misses) };
}
const slider = $("#prevalence");
function showWorth() {
  const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
  $("#prevalence-shown").value = percent(Number(slider.value));
  let words = "";
  for (const line of all("#worth tbody tr")) {
    const { sensitivity, specificity } = line.dataset;
    if (!sensitivity || !specificity) continue;
    const { ppv, npv } = worth(Number(sensitivity), Number(specificity), Number(slider.value));
    $(".ppv", line).textContent = percent(ppv);
    $(".npv", line).textContent = percent(npv);
    if (!words && ppv !== null && npv !== null) {
      words = `Of 100 flagged studies about ${Math.round(100 * ppv)} hold a bleed; of 1,000 that are not, about ${Math.round(1000 * (1 - npv))} do.`;
    }
  }
  $("#worth-words").textContent = words;
}
if (slider) {
  slider.value = recall("prevalence") ?? slider.value;
  slider.addEventListener("input", () => { remember("prevalence", slider.value); showWorth(); });
  showWorth();
}

tellRaised();
filter();
live(soon);
setInterval(soon, FALLBACK_MS);
