// Brings a page to life. Without it, everything can be seen and done; with it, nothing need be loaded again by hand.
"use strict";

(() => {
  const [topic, shown] = (document.body.dataset.live || " ").split(" ");
  const pulse = document.getElementById("pulse");
  const EVERY = 1000; // milliseconds between two fetches of the page, at least
  const STILL = 10000; // and between two where nobody tells of changes
  let version = shown;
  let fetched = 0;
  let waiting = 0;
  let events = null;

  // Times, in the reader's own zone and language.

  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const day = new Intl.DateTimeFormat(undefined, { day: "2-digit", month: "short" });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  function since(date) {
    const seconds = (Date.now() - date) / 1000;
    if (seconds < 10) return "just now";
    for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
    }
    return `${Math.round(seconds)} s ago`;
  }

  function localise(root) {
    for (const time of root.querySelectorAll("time")) {
      const date = new Date(time.dateTime);
      time.title = whole.format(date);
      if ("ago" in time.dataset) {
        time.textContent = since(date);
      } else {
        const today = date.toDateString() === new Date().toDateString();
        time.textContent = today ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
      }
    }
    for (const hour of root.querySelectorAll("[data-hour]")) {
      const date = new Date(hour.dataset.hour * 1000);
      hour.textContent = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(date);
    }
    for (const button of root.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
  }

  // What has changed, put in the place of what was there.

  function opened(region) {
    return [...region.querySelectorAll("details")].map((details) => details.open);
  }

  function put(fresh) {
    for (const region of document.querySelectorAll("[data-region]")) {
      const newer = fresh.getElementById(region.id);
      // Not under somebody's hands: what they are about to press or to confirm stays where it is.
      if (!newer || region.contains(document.activeElement)) continue;
      const open = opened(region);
      [...newer.querySelectorAll("details")].forEach((details, nth) => { details.open = open[nth] || details.open; });
      localise(newer);
      if (newer.innerHTML !== region.innerHTML) region.replaceWith(document.adoptNode(newer));
    }
  }

  async function renew() {
    waiting = 0;
    fetched = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected || !answer.ok) { if (answer.redirected) location.reload(); return; }
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      version = (fresh.body.dataset.live || " ").split(" ")[1];
      put(fresh);
    } catch {
      tell("away", "The server does not answer");
    }
  }

  function soon() {
    if (!waiting) waiting = setTimeout(renew, Math.max(0, fetched + EVERY - Date.now()));
  }

  // Who tells of changes.

  function tell(state, words) {
    pulse.hidden = false;
    if (pulse.className !== `pulse ${state}`) {
      pulse.className = `pulse ${state}`;
      pulse.textContent = words;
    }
  }

  function follow() {
    events = new EventSource(`${document.body.dataset.root}/live?topic=${encodeURIComponent(topic)}`);
    events.addEventListener("open", () => tell("live", "Live"));
    events.addEventListener("version", (event) => { if (event.data !== version) soon(); });
    events.addEventListener("error", () => {
      tell("away", events.readyState === EventSource.CLOSED ? "Every 10 s" : "Reconnecting");
    });
  }

  function unfollow() {
    if (events) events.close();
    events = null;
  }

  localise(document);
  setInterval(() => localise(document), STILL);
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
  // One question at a time; Escape takes it back.
  document.addEventListener("toggle", (event) => {
    if (!event.target.matches("details.confirm") || !event.target.open) return;
    for (const other of document.querySelectorAll("details.confirm[open]")) if (other !== event.target) other.open = false;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const details of document.querySelectorAll("details.confirm[open]")) {
      details.open = false;
      details.querySelector("summary").focus();
    }
  });
  if (topic) {
    follow();
    setInterval(() => { if (!document.hidden && (!events || events.readyState === EventSource.CLOSED)) soon(); }, STILL);
    // A tab that nobody looks at holds no connection: a browser has but six for a site.
    document.addEventListener("visibilitychange", () => {
      unfollow();
      if (!document.hidden) { follow(); soon(); }
    });
  }
})();
