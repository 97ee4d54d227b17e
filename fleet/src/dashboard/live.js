// Keeps the page fresh: a line on the stream says that the fleet changed, then the middle is fetched and swapped in.
"use strict";
const now = document.getElementById("now");
let fetching = false;
let again = false;

async function renew() {
  if (fetching) { again = true; return; }
  fetching = true;
  try {
    const response = await fetch("/dashboard/now");
    if (response.ok) {
      const open = [...now.querySelectorAll("details")].map((d) => d.open);
      const top = now.querySelector(".events")?.scrollTop ?? 0;
      now.innerHTML = await response.text();
      now.querySelectorAll("details").forEach((d, i) => { d.open = open[i] ?? false; });
      const events = now.querySelector(".events");
      if (events) { events.scrollTop = top; }
    }
  } finally {
    fetching = false;
    if (again) { again = false; renew(); }
  }
}

function live(text) {
  const sign = document.getElementById("live");
  if (sign) { sign.textContent = text; sign.classList.toggle("bad", text !== "live"); }
}

const changes = new EventSource("/dashboard/changes");
changes.onmessage = () => { renew().then(() => live("live")); };
changes.onopen = () => live("live");
changes.onerror = () => live("the server does not answer; trying again");
// The clock goes on when nothing else does.
setInterval(renew, 20000);
