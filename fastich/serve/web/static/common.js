// What every page shares: ages that tick, keys, the help dialog, light and dark, requests, and the live stream.

export const $ = (selector, inside = document) => inside.querySelector(selector);
export const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// Ages are counted by the server's clock; only the difference of the two clocks is kept.
let ahead = Number(document.body.dataset.now) * 1000 - Date.now();
export const setNow = (seconds) => { ahead = seconds * 1000 - Date.now(); };
export const now = () => (Date.now() + ahead) / 1000;

// The same words as names.age on the server.
export function age(seconds, coarse = false) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600 && coarse) return `${Math.floor(whole / 60)} min`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}
export function tick() {
  for (const time of all("time[data-since]")) {
    const text = age(now() - Number(time.dataset.since), time.dataset.coarse !== undefined);
    if (time.textContent !== text) time.textContent = text;
  }
}
setInterval(tick, 1000);
tick();

export function announce(text) { $("#announce").textContent = text; }

// The same for eyes too, for a while: something did not happen that the reader believes has.
let telling = 0;
export function warn(text) {
  announce(text);
  $("#announce").classList.replace("hidden", "warning");
  clearTimeout(telling);
  telling = setTimeout(() => $("#announce").classList.replace("warning", "hidden"), 10000);
}

// Storage may be forbidden; then nothing is remembered.
export function remember(name, value) {
  try { localStorage.setItem(`fastich-${name}`, value); } catch { /* forbidden */ }
}
export function recall(name) {
  try { return localStorage.getItem(`fastich-${name}`); } catch { return null; }
}

function showTheme() {
  const button = $("#theme");
  button.textContent = document.documentElement.dataset.theme === "light" ? "Dark" : "Light";
}
function toggleTheme() {
  const theme = document.documentElement.dataset.theme === "light" ? "dark" : "light";
  document.documentElement.dataset.theme = theme;
  remember("theme", theme);
  showTheme();
}
showTheme();
$("#theme").addEventListener("click", toggleTheme);

const help = $("#help");
$("#help-button").addEventListener("click", () => help.showModal());
const keysOn = $("#keys-on");
keysOn.checked = recall("keys") !== "off";
keysOn.addEventListener("change", () => remember("keys", keysOn.checked ? "on" : "off"));

// Single keys act where nobody types and no dialog is open. `actions` maps a key to what it does.
export function onKeys(actions) {
  const every = { t: toggleTheme, "?": () => help.showModal(), ...actions };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    const typing = event.target.closest("input:not([type=range]):not([type=radio]):not([type=checkbox]), textarea, select");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const single = event.key.length === 1;
    if (single && !keysOn.checked) return;
    const act = every[event.key];
    if (act && act(event) !== false) event.preventDefault();
  });
}

// One request; whoever is not signed in any more goes to the form.
export async function ask(path, { method = "GET", body } = {}) {
  const options = { method, headers: { Accept: "application/json" }, credentials: "same-origin" };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.status === 401) {
    location.assign("/login");
    throw new Error("not signed in");
  }
  const found = await answer.json();
  if (!answer.ok) {
    announce(found.error ?? "That did not work.");
    throw new Error(found.error);
  }
  return found;
}

// Says which result was before the reader; where a newer one says more, nothing is acknowledged and the page shows it.
export async function acknowledge(uid, inside, refresh) {
  const seen = $("[name=score_id]", inside).value;
  try {
    await ask(`/studies/${uid}/acknowledge`, { method: "POST", body: { score_id: seen ? Number(seen) : null } });
    return true;
  } catch (error) {
    await refresh();
    warn(error.message);
    return false;
  }
}

// The live stream. `changed` is called with a study UID; the mark says when the page may be stale.
export function live(changed) {
  const mark = $("#live");
  const show = (state, text) => {
    mark.className = `live ${state}`;
    if ($("span", mark).textContent !== text) $("span", mark).textContent = text;
  };
  let since = 0;
  const stream = new EventSource(`/events?after=${document.body.dataset.after}`);
  stream.addEventListener("open", () => { since = 0; show("on", "live"); changed(null); });
  stream.addEventListener("error", () => {
    since ||= Date.now();
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => { ask("/worklist").then(() => location.reload(), () => {}); }, 3000);
  });
  setInterval(() => { if (since) show("off", `not live for ${age((Date.now() - since) / 1000)}`); }, 1000);
  for (const kind of ["study", "comment", "delivery"]) {
    stream.addEventListener(kind, (event) => changed(JSON.parse(event.data).study_uid, kind));
  }
}

if (document.body.querySelector("main.login, main.drift")) onKeys({ Escape: () => location.assign("/") });
