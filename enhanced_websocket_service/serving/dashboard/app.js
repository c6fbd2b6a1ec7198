// The dashboard: /status and /health every two seconds, everything live over /ws. No other origin is contacted.
import { Chart } from "./chart.js";
import { Connection } from "./connection.js";

const $ = (id) => document.getElementById(id);
const STATUS_MS = 2_000;
const LOG_LINES = 200;
const STATE_TONE = { active: "good", ready: "good", market_closed: "idle", error: "bad", shutdown: "bad" };
const HEALTH_TONE = { healthy: "good", degraded: "warn", unhealthy: "bad" };
const VERDICT_TONE = { live: "good", quiet: "good", suspect: "warn", dead: "bad", closed: "idle" };
const yesNo = (value) => (value ? "yes" : "no");
const number = (value, digits = 0) => value === null || value === undefined ? "–"
  : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

const page = { symbol: null, lastPrice: null, tickAt: null, ticks: 0, dayOpen: null, day: null, session: null, loading: 0 };
const chart = new Chart($("chart"), $("chart-empty"));

function set(id, text, tone) {
  const element = $(id);
  if (element.textContent !== String(text)) element.textContent = text;
  if (tone) element.dataset.tone = tone;
}

// --- the service's clock: it may be virtual, so its speed is measured, not assumed -------------
const clock = { server: null, local: 0, rate: 1 };
function observeTime(iso) {
  const server = Date.parse(iso), local = performance.now();
  if (Number.isNaN(server)) return;
  const passed = local - clock.local;
  if (clock.server !== null && passed > 1500) {
    clock.rate = Math.max(0, (server - clock.server) / passed);
  }
  if (clock.server === null || passed > 1500) Object.assign(clock, { server, local });
}
const serverNow = () => clock.server === null ? null : clock.server + (performance.now() - clock.local) * clock.rate;
const bogota = (ms) => new Date(ms - 5 * 3600_000).toISOString(); // UTC-5 all year

function span(seconds) {
  const s = Math.max(0, Math.floor(seconds)), d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24;
  const m = Math.floor(s / 60) % 60, two = (n) => String(n).padStart(2, "0");
  if (d) return `${d} d ${h} h`;
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${two(m)}:${two(s % 60)}`;
}

// --- events ---------------------------------------------------------------------------------
function note(kind, text, tone = "idle", iso = null) {
  const now = serverNow();
  const item = document.createElement("li");
  item.dataset.tone = tone;
  const stamp = document.createElement("time");
  stamp.textContent = iso ? iso.slice(11, 19) : now === null ? "" : bogota(now).slice(11, 19);
  const title = document.createElement("b"), body = document.createElement("span");
  title.textContent = kind;
  body.textContent = text;
  item.append(stamp, title, body);
  $("log").prepend(item);
  while ($("log").childElementCount > LOG_LINES) $("log").lastElementChild.remove();
}

// --- price ----------------------------------------------------------------------------------
function showPrice(data) {
  const element = $("price");
  if (page.lastPrice !== null && data.price !== page.lastPrice) {
    element.classList.remove("up", "down");
    void element.offsetWidth; // restarts the animation
    element.classList.add(data.price > page.lastPrice ? "up" : "down");
  }
  page.lastPrice = data.price;
  page.tickAt = Date.parse(data.timestamp);
  set("price", number(data.price, 2));
  set("bid", number(data.bid, 2));
  set("ask", number(data.ask, 2));
  set("spread", number(data.spread, 2));
  set("source", data.source);
  document.title = `${number(data.price, 2)} ${$("symbol").textContent}`;
  showChange();
}

function showChange() {
  if (page.dayOpen === null || page.lastPrice === null) return set("change", "", "idle");
  const change = page.lastPrice - page.dayOpen, percent = (100 * change) / page.dayOpen;
  const sign = change >= 0 ? "+" : "−";
  set("change", `${sign}${number(Math.abs(change), 2)} (${sign}${number(Math.abs(percent), 2)} %) since the open`,
    change >= 0 ? "good" : "bad");
}

async function loadBars() {
  const ticket = ++page.loading;
  const ask = async (query) => {
    const answer = await fetch(`/market/bars?symbol=${page.symbol}&${query}`);
    if (!answer.ok) throw new Error((await answer.json()).detail);
    return (await answer.json()).data;
  };
  try {
    const latest = await ask("limit=60");
    const now = serverNow();
    const today = now === null ? "" : bogota(now).slice(0, 10);
    const lastDay = latest.length ? latest[latest.length - 1].datetime.slice(0, 10) : today;
    const bars = latest.filter((bar) => bar.datetime.startsWith(lastDay));
    if (ticket !== page.loading) return; // a newer request overtook this one
    page.day = today;
    page.dayOpen = bars.length && lastDay === today ? bars[0].open : null;
    chart.replace(bars);
    set("chart-title", `5-minute bars · ${lastDay}${lastDay === today ? "" : " (last session)"}`);
    showChange();
  } catch (error) {
    note("bars", String(error.message || error), "warn");
  }
}

// --- messages -------------------------------------------------------------------------------
const handlers = {
  welcome(message) {
    observeTime(message.timestamp);
    note("welcome", `epoch ${message.epoch ?? "–"}, state ${message.server_status}`);
  },
  market_data(message) {
    showPrice(message.data);
    if (message.snapshot) return;
    page.ticks += 1;
    set("ticks", number(page.ticks));
    const day = message.data.timestamp.slice(0, 10);
    if (page.day !== day && page.day !== null) {
      page.day = day;
      page.dayOpen = message.data.price;
      chart.replace([]);
      set("chart-title", `5-minute bars · ${day}`);
    }
    if (page.dayOpen === null) page.dayOpen = message.data.price;
    chart.tick(message.data.timestamp, message.data.price);
  },
  bar(message) {
    if (message.interval !== "5min") return;
    const bar = message.data;
    if (bar.datetime.slice(0, 10) === page.day) chart.put(bar);
    const prices = [bar.open, bar.high, bar.low, bar.close].map((p) => number(p, 2)).join(" · ");
    note(`bar ${message.status}`, `${bar.datetime.slice(11, 16)}  ${prices}  (revision ${bar.revision})`, "idle", message.timestamp);
  },
  status(message) {
    set("state", message.server_status.replace("_", " "), STATE_TONE[message.server_status] ?? "warn");
    set("reason", message.reason);
    $("reason").title = message.reason;
    note(message.server_status, `${message.reason} · feed ${message.feed_verdict}`,
      STATE_TONE[message.server_status] ?? "warn", message.timestamp);
    refresh();
    if (message.server_status === "ready" || message.server_status === "market_closed") loadBars();
  },
  epoch(message) { note("epoch", `${message.epoch}, offsets begin again at 1`); },
  skipped(message) { note("skipped", `${message.from} to ${message.to ?? "?"}: ${message.reason}`, "warn"); },
  heartbeat_response(message) { observeTime(message.timestamp); },
  error(message) { note(message.code, message.message, "bad"); },
};

// --- status ---------------------------------------------------------------------------------
function showStatus(status) {
  observeTime(status.timestamp);
  set("state", status.service_status.replace("_", " "), STATE_TONE[status.service_status] ?? "warn");
  set("reason", status.state.reason);
  $("reason").title = status.state.reason;
  set("provider", status.simulated ? `${status.provider}: not real prices` : status.provider);
  page.session = status.market_session;
  const [opens, closes] = page.session.status === "open"
    ? [page.session.current_session_start, page.session.current_session_end]
    : [page.session.next_session_start, page.session.next_session_end];
  const zone = page.session.timezone === "America/Bogota" ? "COT" : page.session.timezone.replace("_", " ");
  set("session-hours", `${page.session.is_trading_day ? "Trading day" : page.session.holiday || "Weekend"} · ${opens.slice(11, 16)}–${closes.slice(11, 16)} ${zone}`);

  const feed = status.realtime_collection;
  set("verdict", feed.verdict, VERDICT_TONE[feed.verdict] ?? "idle");
  set("evidence", feed.evidence ?? "");
  set("feed-socket", feed.websocket_connected ? "connected" : "not connected");
  set("feed-ticks", `${number(feed.ticks_accepted)} / ${number(feed.ticks_rejected)}`);
  set("feed-reconnects", number(feed.reconnects));

  const l0 = status.l0_integration;
  set("completeness", l0.completeness_percentage === null ? "–" : `${number(l0.completeness_percentage, 1)} %`);
  $("completeness-meter").style.width = `${l0.completeness_percentage ?? 0}%`;
  $("completeness-meter").style.background = l0.is_complete ? "var(--up)" : "var(--warn)";
  set("freshness", l0.data_freshness_hours === null ? "–" : `${yesNo(l0.is_fresh)}, ${number(l0.data_freshness_hours, 1)} h old`);
  set("missing", number(l0.missing_slots));
  set("flag", l0.ready_signal_exists ? "present" : "absent");

  showKeys(status.api_key_usage);
  const clients = status.clients, modes = clients.by_mode;
  set("clients", number(clients.connected));
  set("modes", `${modes.every} / ${modes.latest} / ${modes.bars}`);
  set("slow", number(clients.slow));
  set("sent", number(clients.messages_sent_total));
  set("lag", number(status.storage.writer_lag_records));
  set("database", status.storage.database_connected ? "connected" : "not connected");
  set("redis", status.storage.redis_connected ? "connected" : "not connected");
  set("uptime", span(status.uptime_seconds));
}

function showKeys(usage) {
  set("calls", number(usage.total_calls));
  set("keys-note", `${usage.total_keys} key${usage.total_keys === 1 ? "" : "s"}, now number ${usage.current_key_index}`);
  const most = Math.max(1, ...usage.keys.map((key) => key.calls_today));
  const bars = usage.keys.map((key, index) => {
    const column = document.createElement("span"), fill = document.createElement("i");
    fill.style.height = `${(100 * key.calls_today) / most}%`;
    column.title = `${key.name}: ${key.calls_today} calls, ${key.state}`;
    column.classList.toggle("current", index === usage.current_key_index);
    column.classList.toggle("off", key.state === "disabled");
    column.append(fill);
    return column;
  });
  $("keys").hidden = bars.length === 0;
  $("keys").replaceChildren(...bars);
}

function showHealth(health) {
  set("health", health.status, HEALTH_TONE[health.status] ?? "idle");
  const list = $("problems");
  $("problems-card").hidden = health.problems.length === 0;
  health.problems.forEach((problem, index) => {
    const item = list.children[index] ?? list.appendChild(document.createElement("li"));
    if (item.textContent !== problem) item.textContent = problem;
  });
  while (list.childElementCount > health.problems.length) list.lastElementChild.remove();
}

async function askHealth() {
  try {
    showHealth(await (await fetch("/health")).json()); // 503 has a body, too
  } catch {
    showHealth({ status: "unknown", problems: [] });
  }
}

async function refresh() {
  askHealth();
  try {
    const answer = await fetch("/status");
    const status = await answer.json();
    if (!answer.ok) throw new Error(status.detail);
    if (page.symbol === null) begin(Object.keys(status.positions)[0]);
    showStatus(status);
  } catch {
    set("state", "unreachable", "bad");
    set("reason", "The service does not answer; trying again.");
  }
}

function begin(symbol) {
  page.symbol = symbol;
  set("symbol", symbol.length === 6 ? `${symbol.slice(0, 3)}/${symbol.slice(3)}` : symbol);
  new Connection(symbol, (message) => handlers[message.type]?.(message), (up, detail) => {
    $("link").dataset.tone = up ? "good" : "bad";
    set("link-text", up ? "live" : "reconnecting");
    note(up ? "link" : "link lost", detail, up ? "good" : "warn");
    if (up) loadBars();
  });
}

// --- what moves by itself -------------------------------------------------------------------
function tickTock() {
  const now = serverNow();
  if (now === null) return;
  const speed = clock.rate > 1.5 ? ` · ${number(clock.rate)}×` : "";
  set("clock", `${bogota(now).slice(0, 19).replace("T", " ")} COT${speed}`);
  if (page.tickAt !== null) set("age", span((now - page.tickAt) / 1000));
  const session = page.session;
  if (!session) return;
  const open = session.status === "open";
  const start = Date.parse(open ? session.current_session_start : session.next_session_start);
  const end = open ? Date.parse(session.current_session_end) : start;
  set("countdown", span((end - now) / 1000));
  set("countdown-label", open ? "until the close" : `until the open, ${session.next_session_start.slice(0, 16).replace("T", " ")}`);
  const share = open ? (100 * (now - start)) / (end - start) : 0;
  $("session-meter").style.width = `${Math.min(100, Math.max(0, share))}%`;
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  chart.redraw();
}
const preferred = matchMedia("(prefers-color-scheme: light)");
theme(localStorage.getItem("theme") ?? (preferred.matches ? "light" : "dark"));
preferred.addEventListener("change", (event) => {
  if (localStorage.getItem("theme") === null) theme(event.matches ? "light" : "dark");
});
$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "light" ? "dark" : "light";
  localStorage.setItem("theme", next);
  theme(next);
});
for (const button of document.querySelectorAll(".segments button")) {
  button.addEventListener("click", () => {
    chart.style = button.dataset.style;
    for (const other of document.querySelectorAll(".segments button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    chart.redraw();
  });
}

refresh();
setInterval(refresh, STATUS_MS);
setInterval(tickTock, 200);
