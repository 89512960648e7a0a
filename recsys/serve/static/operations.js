"use strict";
// The view for operators: draws what GET /v1/operations and /readyz say, and in words what is missing.
const text = (t, className = "") => el("p", className ? { className } : {}, t);
const ms = (x) => (x < 10 ? x.toFixed(1) : x.toFixed(0)) + " ms";
const percent = (x) => `${(100 * x).toFixed(1)} %`;
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
const moment = (when) => new Date(when).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
function ago(seconds) {
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([size]) => seconds >= size) || [1, "second"], n = Math.max(0, Math.floor(seconds / size));
  return `${n} ${unit}${n === 1 ? "" : "s"} ago`;
}
function facts(rows) { return el("dl", { className: "facts" }, ...rows.filter(([, value]) => value !== "" && value != null).map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value)))); }
function badge(good, words) { return el("span", { className: "badge " + (good ? "good" : "bad") }, words); }
function table(caption, heads, rows) {
  const cell = (value, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, value);
  return el("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: caption }, el("table", {}, el("caption", { className: "hidden" }, caption), el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell))))));
}

// ---- a line chart: one SVG, two lines, labels for both axes
function svg(tag, attributes, ...inside) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [n, v] of Object.entries(attributes)) e.setAttribute(n, v);
  e.append(...inside);
  return e;
}
const WIDTH = 640, HEIGHT = 200, TOP = 14, BOTTOM = 28;
const narrow = matchMedia("(max-width: 34rem)");  // where the letters of a chart are larger
function lines(label, points, series, show) {  // points: [{x, label, ...}]; series: [[field, name, class]]; show: value -> text
  const LEFT = narrow.matches ? 96 : 64, xs = points.map((p) => p.x), first = Math.min(...xs), span = Math.max(...xs) - first || 1;
  const most = Math.max(...points.flatMap((p) => series.map(([field]) => p[field]))) * 1.1 || 1;
  const x = (p) => (points.length === 1 ? (LEFT + WIDTH) / 2 : LEFT + ((p.x - first) / span) * (WIDTH - LEFT - 16)), y = (v) => TOP + (1 - v / most) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, 0.5, 1].flatMap((share) => [svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(share * most), y2: y(share * most) }), svg("text", { x: LEFT - 8, y: y(share * most) + 4, "text-anchor": "end" }, show(share * most))]);
  const ends = points.length > 1 ? [[points[0], "start"], [points.at(-1), "end"]] : [[points[0], "middle"]];
  parts.push(...ends.map(([p, anchor]) => svg("text", { x: anchor === "start" ? LEFT : anchor === "end" ? WIDTH : x(p), y: HEIGHT - 6, "text-anchor": anchor }, p.label)));
  for (const [field, name, kind] of series) {
    parts.push(svg("polyline", { class: kind, points: points.map((p) => `${x(p).toFixed(1)},${y(p[field]).toFixed(1)}`).join(" ") }));
    parts.push(...points.map((p) => svg("circle", { class: kind, cx: x(p).toFixed(1), cy: y(p[field]).toFixed(1), r: 3 }, svg("title", {}, `${p.label}: ${name} ${show(p[field])}`))));
  }
  const last = points.at(-1), said = `${label}; at ${last.label} ` + series.map(([field, name]) => `${name} ${show(last[field])}`).join(", ");
  const legend = el("p", { className: "keys" }, ...series.map(([field, name, kind]) => el("span", { className: kind }, `${name} ${show(last[field])}`)));
  return [svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": said }, ...parts), legend];
}

// ---- the parts of the page
function showLive(found) {
  const { live, answering, now } = found;
  if (!live) return [text(found.missing.live, "missing"), facts([["answering", answering], ["run", found.run]])];
  const same = answering.split("+")[0] === live.version.split("+")[0];
  return [text(live.version, "big"), badge(same, same ? "this bundle answers" : `bundle ${answering} answers here`),
    facts([["since", `${moment(live.since)}, ${ago(now - Date.parse(live.since) / 1000)}`], ["run", live.run], ["before it", live.predecessor || "nothing"], ["because", live.reason]])];
}
function showGate({ gate, missing }) {
  $("gate-more").hidden = !gate?.rules.length;
  if (!gate) return [text(missing.gate, "missing")];
  $("gate-rules").replaceChildren(...gate.rules.map((rule) => el("li", {}, badge(rule.passed, rule.passed ? "passed" : "failed"), " ", rule.reason)));
  return [text(gate.candidate, "big"), badge(gate.passed, gate.passed ? "passed" : "refused"), facts([["run", gate.run], ["against", gate.live || "popularity only"], ["judged by", `${gate.metric}, ${gate.cases.toLocaleString("en")} cases`], ["from", moment(gate.first)], ["to", moment(gate.last)]]),
    el("ul", { className: "plain" }, ...[...gate.reasons, ...gate.notes].map((note) => el("li", {}, note)))];
}
function showMinutes({ minutes, since, remembered }) {
  $("remembered").textContent = `${remembered.toLocaleString("en")} page${remembered === 1 ? "" : "s"} since ${clock(since)}`;
  $("minutes-more").hidden = !minutes.length;
  if (!minutes.length) return [text("no page in the last hour: ask for one in the shop", "missing")];
  const points = minutes.map((m) => ({ ...m, x: m.minute, label: clock(m.minute) }));
  $("minutes-table").replaceChildren(table("Time of a page by the minute", ["minute", "pages", "p50", "p99"], points.toReversed().map((m) => [m.label, m.pages, ms(m.p50), ms(m.p99)])));
  return lines("Median and 99th percentile of the time of a page by the minute", points, [["p99", "p99", "b"], ["p50", "p50", "a"]], ms);
}
function showFallbacks({ fallbacks, remembered }) {
  if (!remembered) return [text("no page yet since this gateway was started", "missing")];
  if (!fallbacks.length) return [badge(true, "none"), text(`on ${remembered.toLocaleString("en")} page${remembered === 1 ? "" : "s"} of this gateway`)];
  return [table("Fallbacks by reason", ["reason", "pages", "answered by"], fallbacks.map((f) => [f.fails || f.code, f.pages, f.answers]))];
}
function showDays({ days, missing }) {
  if (!days.length) return [text(missing.days, "missing")];
  const day = days.at(-1), points = days.map((d, i) => ({ ...d, x: i, label: d.day, rate: d.clicks / Math.max(1, d.shown) }));
  const steps = Object.entries(day.fallbacks).map(([step, pages]) => `${step} ${pages}`).join(", ");
  return [facts([["newest day", day.day], ["pages", day.pages.toLocaleString("en")], ["events", day.events.toLocaleString("en")], ["clicks", `${percent(points.at(-1).rate)} of shown items`], ["fallbacks", steps || "none"]]),
    ...lines("Clicks by shown items and day", points, [["rate", "clicks by shown items", "a"]], percent), ...lines("Time of a page in the recommender by day", points, [["p99", "p99", "b"], ["p50", "p50", "a"]], ms)];
}
function showDrift({ days, missing }) {
  if (!days.length) return [text(missing.days, "missing")];
  const day = days.at(-1), sorted = [...day.checks].sort((a, b) => b.alarm - a.alarm || b.value / b.limit - a.value / a.limit);
  return [badge(!day.alarms.length, day.alarms.length ? `${day.alarms.length} alarm${day.alarms.length === 1 ? "" : "s"}` : "no alarm"), text(`${day.day}, ${day.checks.length} checks`),
    table(`Checks of ${day.day}`, ["check", "value", "limit", "verdict", "in words"], sorted.map((c) => [c.check, c.value.toPrecision(3), c.limit.toPrecision(3), c.judged ? badge(!c.alarm, c.alarm ? "alarm" : "fine") : "not judged", c.says]))];
}
const PARTS = { "live-body": showLive, "gate-body": showGate, "minutes-chart": showMinutes, "fallbacks-body": showFallbacks, "days-body": showDays, "drift-body": showDrift };
let drawn = {};
function show(found) {  // a part that did not change is left alone: what is focused or scrolled in it stays
  for (const [id, make] of Object.entries(PARTS)) {
    const parts = make(found), now = parts.map((part) => part.outerHTML).join("");
    if (drawn[id] !== now) document.getElementById(id).replaceChildren(...parts);
    drawn[id] = now;
  }
  $("bundle").textContent = found.answering;
}
async function look() {
  try {
    const ready = await call("GET", "/readyz"), chips = [["Triton", ready.triton], ["Valkey", ready.valkey]];
    $("servers").replaceChildren(...chips.map(([name, there]) => el("span", { className: "chip" + (there ? "" : " gone") }, `${name} ${there ? "answers" : "is gone"}`)), ...(ready.alarms || []).map((alarm) => el("span", { className: "chip gone" }, `alarm: ${alarm.code}`)));
    $("key-box").hidden = Boolean(access.key) && !$("key-box").open;
    if (!access.key) { $("key-box").open = true; warn("This view needs the API key: see the box “API key”."); return; }
    show(await call("GET", "/v1/operations"));
    warn("");
  } catch (e) { $("key-box").hidden = false; warn(e.message); }  // perhaps of an old key
  finally { document.querySelector("main").ariaBusy = "false"; }
}
onKey(look);
look();
setInterval(look, 5000);
