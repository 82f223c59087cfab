// Asks for the state every two seconds and draws it. Whatever it gets becomes text, never markup.

const find = (id) => document.getElementById(id);
const drawn = {};
let state, version, cursor = null, lost = null, chosen;

function make(name, attributes = {}, ...children) {
  const isSvg = ["svg", "path", "line", "text", "circle", "title"].includes(name);
  const element = document.createElementNS(`http://www.w3.org/${isSvg ? "2000/svg" : "1999/xhtml"}`, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Replaces what has changed only, so that focus, selections and screen readers are left alone.
function put(id, data, render) {
  const text = JSON.stringify(data);
  if (drawn[id] === text) return;
  drawn[id] = text;
  const focus = find(id).contains(document.activeElement) && document.activeElement.getAttribute("href");
  find(id).replaceChildren(...[render(data)].flat());
  if (focus) [...find(id).querySelectorAll("a")].find((a) => a.getAttribute("href") === focus)?.focus();
}
const say = (id, text) => put(id, text, (it) => it);

const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : `${number(100 * share, digits)} %`);
const clock = (seconds) => new Date(1000 * seconds).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
function duration(seconds) {
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  if (whole < 60) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  return hours ? `${number(hours)} h ${String(minutes).padStart(2, "0")} min` : `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
}

function ticks(low, high, most) {
  const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

// A chart over epochs. `series`: [name, class, [[epoch, value], …]]. The cursor of all charts is one.
function chart(place, label, series, marks, format, fromZero) {
  const svg = place.querySelector("svg"), width = svg.clientWidth, height = 220;
  const left = 46, right = width - 10, top = 10, bottom = height - 24;
  const known = series.map(([name, kind, points]) => [name, kind, points.filter(([, value]) => value !== null)]).filter(([, , points]) => points.length);
  const all = known.flatMap(([, , points]) => points);
  place.hidden = !all.length;
  if (!all.length || !width) return;
  const epochs = all.map(([epoch]) => epoch), values = all.map(([, value]) => value);
  const start = Math.min(...epochs, Math.max(...epochs) / 2), end = Math.max(...epochs) || 1;
  const floor = fromZero ? 0 : Math.min(...values), ceiling = Math.max(...values) + 0.06 * (Math.max(...values) - floor) || 1;
  const x = (epoch) => left + ((epoch - start) / (end - start || 1)) * (right - left);
  const y = (value) => bottom - ((value - floor) / (ceiling - floor || 1)) * (bottom - top);
  const at = cursor === null ? end : Math.min(Math.max(cursor, start), end);
  const nearest = (points) => points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));
  const found = known.map(([name, kind, points]) => [name, kind, nearest(points)]);
  place.querySelector(".legend").replaceChildren(
    ...found.map(([name, kind, [, value]]) => make("li", {}, make("i", { class: `line ${kind}` }), `${name} `, make("b", {}, format(value)))),
    ...marks.map(([what]) => make("li", {}, make("i", { class: "mark", "data-mark": what }), what)),
    cursor === null ? "" : make("li", { class: "at" }, `epoch ${number(at, 2)}`),
  );
  const line = (points) => points.map(([epoch, value], place) => `${place ? "L" : "M"}${x(epoch).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const text = `epoch ${number(at, 2)}: ${found.map(([name, , [, value]]) => `${name} ${format(value)}`).join(", ")}`;
  const told = { role: "slider", tabindex: 0, "aria-label": label, "aria-valuemin": start, "aria-valuemax": end, "aria-valuenow": at, "aria-valuetext": text, viewBox: `0 0 ${width} ${height}` };
  for (const [key, value] of Object.entries(told)) svg.setAttribute(key, value);
  svg.replaceChildren(
    ...ticks(floor, ceiling, 4).flatMap((tick) => [
      make("line", { class: "rule", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      make("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick, true)),
    ]),
    ...ticks(start, end, Math.max(2, Math.floor(width / 60))).map((tick) => make("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, number(tick, tick % 1 ? 1 : 0))),
    ...marks.flatMap(([what, at]) => at.filter((epoch) => epoch >= start && epoch <= end).map((epoch) => make("line", { class: "mark", "data-mark": what, x1: x(epoch), x2: x(epoch), y1: top, y2: bottom }, make("title", {}, `${what} at epoch ${number(epoch, 2)}`)))),
    ...known.map(([, kind, points]) => make("path", { class: `curve ${kind}`, d: line(points) })),
    cursor === null ? "" : make("line", { class: "cursor", x1: x(at), x2: x(at), y1: top, y2: bottom }),
    ...found.map(([, kind, [epoch, value]]) => make("circle", { class: kind, cx: x(epoch), cy: y(value), r: 4 })),
  );
  svg.onpointermove = (event) => point(start + ((event.offsetX - left) / (right - left)) * (end - start));
  svg.onpointerleave = svg.onblur = () => point(null);
  svg.onkeydown = (event) => {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -1e9, End: 1e9 }[event.key];
    if (steps) event.preventDefault(), point(Math.min(Math.max(at + (steps * (end - start)) / 60, start), end));
  };
}
function point(epoch) {
  cursor = epoch;
  drawCharts(state.run);
}

function drawCharts(run) {
  const [accuracy, loss, speed] = find("charts").children;
  const marks = Object.entries(run.marks);
  const of = (points, column) => points.map((values) => [values[1], values[column]]);
  const three = (value) => number(value, 3), tick = (value, isTick) => (isTick ? String(+value.toPrecision(3)) : three(value));
  chart(accuracy, "Accuracy over epochs", [["train top-1", "train", of(run.train, 3)], ["val top-1", "val", of(run.val, 3)], ["val top-5", "val five", of(run.val, 4)]], marks, (value, isTick) => percent(value, isTick ? 0 : 1), true);
  chart(loss, "Loss over epochs", [["train", "train", of(run.train, 2)], ["val", "val", of(run.val, 2)]], marks, tick, false);
  chart(speed, "Images a second over epochs", [["all ranks", "val", of(run.train, 4)]], marks, (value) => number(value), true);
}

const word = (state) => state.replace(/^(was|has) /, "");
const badge = (run) => make("span", { class: "state", "data-state": run.state }, word(run.state));
function spark(values) {
  const known = values.filter((value) => value !== null), low = Math.min(...known), high = Math.max(...known);
  if (known.length < 2) return null;
  const d = known.map((value, at) => `${at ? "L" : "M"}${((60 * at) / (known.length - 1)).toFixed(1)} ${(20 - (18 * (value - low)) / (high - low || 1)).toFixed(1)}`);
  return make("svg", { viewBox: "0 0 60 22", "aria-hidden": "true" }, make("path", { class: "curve train", d: d.join("") }));
}
function card(run) {
  const share = run.target ? run.step / run.target : 0;
  const line = run.what || [run.epochs ? `epoch ${number(run.epoch, 1)} of ${number(run.epochs)}` : null, run.top1 === null ? null : `top-1 ${percent(run.top1)}`, run.alarms ? `${number(run.alarms)} ⚠` : null].filter(Boolean).join(" · ");
  return make("li", {}, make("a", { href: `/?${run.key}`, "aria-current": run.key === state.key ? "page" : null },
    make("strong", {}, run.name), badge(run), run.spark ? spark(run.spark) : null, make("small", {}, line),
    make("span", { class: "track", "aria-hidden": "true" }, make("span", { "--share": share }))));
}

function tile(name, value, ...notes) {
  return make("div", { class: "card" }, make("dt", {}, name), make("dd", {}, make("p", { class: "big" }, value), ...notes.filter(Boolean).map((note) => (typeof note === "string" ? make("p", { class: "soft" }, note) : note))));
}
function tiles(run) {
  const left = run.is_at_work && run.speed && run.start ? ((run.target - run.step) * run.start.global_batch_size) / run.speed : null;
  return [
    tile("Epoch", run.epochs ? `${number(run.epoch, run.epochs < 100 ? 2 : 1)} / ${number(run.epochs)}` : "–", make("span", { class: "track", "aria-hidden": "true" }, make("span", { "--share": run.target ? run.step / run.target : 0 })), `step ${number(run.step)} of ${number(run.target)}${left ? `, about ${duration(left)} of training left` : ""}`),
    tile("Validation top-1", percent(run.top1, 2), run.top5 === null ? "" : `top-5 ${percent(run.top5, 2)}`),
    tile("Training loss", number(run.loss, 4), "mean of the last log interval"),
    tile("Images a second", number(run.speed), run.wait === null ? "" : `${percent(run.wait)} of the time waiting for data`),
  ];
}
function told(rows, none) {
  if (!rows.length) return make("li", { class: "soft" }, none);
  return rows.map((row) => make("li", {}, make("strong", {}, row.what), make("span", { class: "soft" }, ` ${clock(row.time)}, step ${number(row.step)}`), row.text ? make("p", {}, row.text) : null));
}
const key = (kind, name, text, value) => make("li", {}, make("i", { class: `${kind} ${name}` }), `${text} `, value ? make("b", {}, value) : null);

function drawRun(run) {
  say("name", run.name);
  put("state", run.state, () => badge(run));
  say("sentence", run.sentence ?? "");
  say("next", run.next ? `Next: ${run.next}.` : "");
  put("faults", [run.what, run.faults], () => [run.what, ...(run.faults ?? [])].filter(Boolean).map((text) => make("p", { class: "note alarm" }, text)));
  for (const part of find("run").querySelectorAll("dl, .grid, section")) part.hidden = !run.train;
  const start = run.start;
  say("facts", start ? `${start.shard_set ?? "images"}: ${number(start.num_train_samples)} to train on; ${count(start.world_size, "rank")} on ${start.device}, ${start.precision}, ${number(start.global_batch_size)} images a step` : "");
  if (!run.train) return;
  put("tiles", [run.step, run.speed, run.loss, run.top1, run.target], () => tiles(run));
  drawCharts(run);
  find("ranks").parentElement.hidden = !run.ranks.length;
  put("phases", run.phases, () => Object.entries(run.phases).map(([name, text]) => key("block", name, text)));
  put("ranks", run.ranks, () => run.ranks.map((rank) => make("li", {},
    make("span", {}, `rank ${rank.rank} on ${rank.host}`, rank.state === "running" ? "" : `, ${rank.state}`),
    make("span", { class: "stack", role: "img", "aria-label": Object.entries(rank.shares).map(([name, share]) => `${run.phases[name]} ${percent(share)}`).join(", ") },
      ...Object.entries(rank.shares).map(([name, share]) => make("span", { class: name, "--share": share, title: `${run.phases[name]} ${percent(share)}` }))))));
  const ledger = run.ledger, total = ledger ? ledger.end - ledger.begin : 0;
  const seconds = total ? Object.entries(ledger.seconds).filter(([, value]) => value > 0) : [];
  say("goodput", total ? `${percent(ledger.goodput)} of ${duration(total)} went into steps of training that count. ${count(ledger.num_attempts, "attempt")}, ${count(ledger.num_preemptions, "preemption")}, ${count(ledger.num_lost_steps, "step")} done again.` : "Nothing yet.");
  put("ledger", seconds, () => seconds.map(([name, value]) => make("span", { class: name, "--share": value / total, title: `${run.classes[name]} ${duration(value)}` })));
  find("ledger").hidden = !seconds.length;
  find("ledger").setAttribute("aria-label", seconds.map(([name, value]) => `${run.classes[name]} ${duration(value)}`).join(", "));
  put("classes", seconds, () => seconds.map(([name, value]) => key("block", name, run.classes[name], `${duration(value)}, ${percent(value / total)}`)));
  put("alarms", run.alarm_rows, () => told(run.alarm_rows, "None."));
  put("events", run.event_rows, () => told(run.event_rows, "Nothing yet."));
  say("num-alarms", run.alarms ? number(run.alarms) : "");
  say("log", run.log ?? "There is no log here: jobs that were started by launch leave one.");
  const lines = find("lines"), isAtEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 8;
  lines.hidden = !run.lines;
  say("lines", (run.lines ?? []).join("\n"));
  if (isAtEnd) lines.scrollTop = lines.scrollHeight;
}

function draw() {
  const run = state.run, other = state.others.find((each) => each.key === state.key);
  say("root", state.root);
  put("runs", [state.runs, state.key], () => state.runs.map(card));
  if (chosen !== state.key) find("runs").scrollLeft = find("runs").querySelector("[aria-current]")?.offsetLeft - 20;
  chosen = state.key;
  find("rest").hidden = !state.others.length;
  say("rest-title", `${number(state.others.length)} other ${state.others.length === 1 ? "entry" : "entries"}`);
  put("others", state.others, () => state.others.map((each) => make("li", {}, make("strong", {}, each.name), ` ${each.what}`)));
  find("run").hidden = !run;
  find("note").hidden = Boolean(run);
  document.title = run ? `${word(run.state)}: ${run.name}` : "Runs";
  if (run) drawRun(run);
  else say("note", state.fault || (state.key ? "There is no such run in the folder now. If it comes back, it is shown again." : "There is no run in the folder yet. The first one is shown as soon as it begins."));
}

async function ask() {
  try {
    const answer = await fetch(`/state.json${location.search}`, { signal: AbortSignal.timeout(20000) });
    if (!answer.ok) throw new Error(answer.statusText);
    state = await answer.json();
    if (version && version !== state.version) location.reload();
    version = state.version;
    lost = null;
  } catch {
    lost ??= new Date().toLocaleTimeString("en-GB");
  }
  document.body.classList.toggle("lost", lost !== null);
  say("link", lost ? `no answer since ${lost}: trying again` : "live");
  if (state) draw();
}
async function askAgain() {
  await ask().catch(console.error);
  setTimeout(askAgain, document.hidden ? 10000 : 2000);
}

find("runs").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, "", link.getAttribute("href"));
  cursor = null;
  ask();
});
addEventListener("popstate", ask);
addEventListener("resize", () => state?.run?.train && drawCharts(state.run));
askAgain();
