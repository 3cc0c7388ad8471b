// Colours: as the system, until chosen otherwise; and what the page says of the server.

const THEMES = ["system", "light", "dark"];

function stored(value) {
  try {
    if (value !== undefined) localStorage.setItem("dynframe-theme", value);
    return localStorage.getItem("dynframe-theme");
  } catch {
    return value ?? null;
  }
}
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = { system: "◐ auto", light: "○ light", dark: "● dark" }[theme];
  button.setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  button.dataset.theme = theme;
}

document.getElementById("theme").addEventListener("click", (event) => {
  const next = THEMES[(THEMES.indexOf(event.currentTarget.dataset.theme) + 1) % THEMES.length];
  stored(next);
  setTheme(next);
});
setTheme(THEMES.includes(stored()) ? stored() : "system");

function liveState(text) {
  const place = document.getElementById("live-state");
  if (place.textContent !== text) place.textContent = text; // or it would be read out again
}
