// Before anything is drawn: dark unless light was chosen, so that nothing flashes in a dark room.
(function () {
  let theme = "dark";
  try { theme = localStorage.getItem("fastich-theme") === "light" ? "light" : "dark"; } catch { /* no storage: dark */ }
  document.documentElement.dataset.theme = theme;
})();
