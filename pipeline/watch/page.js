// Asks for the state every two seconds and draws it. Whatever it gets becomes text, never markup.

const SVG = ["svg", "path", "line", "text", "circle", "title"];
const drawn = {};
let state, version, chosen, cursor = null, lost = null;

const find = (id) => document.getElementById(id);

// An element; attributes that begin with -- are variables of its style, null ones are left out.
function make(name, attributes = {}, ...children) {
  const space = SVG.includes(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Replaces only what has changed, so that focus, selections and screen readers are left alone.
function put(id, data, render) {
  const text = JSON.stringify(data), place = find(id);
  if (drawn[id] === text) return;
  drawn[id] = text;
  const active = place.contains(document.activeElement) ? document.activeElement : null;
  place.replaceChildren(...[render(data)].flat());
  const again = (link) => link.getAttribute("href") === active?.getAttribute("href");
  if (active) [...place.querySelectorAll("a")].find(again)?.focus();
}
const say = (id, text) => put(id, text, (it) => it);

function number(value, digits = 0) {
  const how = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return (value ?? null) === null ? "–" : value.toLocaleString("en", how);
}
const percent = (share, digits = 1) =>
  (share ?? null) === null ? "–" : `${number(100 * share, digits)} %`;
const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
function clock(seconds) {
  const time = new Date(1000 * seconds);
  const day = time.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return `${day} ${time.toLocaleTimeString("en-GB")}`;
}
function duration(seconds) {
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (whole < 60) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  const two = (value) => String(value % 60).padStart(2, "0");
  if (minutes < 60) return `${minutes} min ${two(whole)} s`;
  return `${number(Math.floor(minutes / 60))} h ${two(minutes)} min`;
}

// Round numbers from `low` to `high`, about as many as `most`.
function ticks(low, high, most) {
  const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
}

const toPath = (points) =>
  points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// A chart over epochs; each of `series` has a name, a class, and points [epoch, value].
function chart(place, label, series, marks, format, fromZero) {
  const svg = place.querySelector("svg"), width = svg.clientWidth, height = 220;
  const known = series
    .map((one) => ({ ...one, points: one.points.filter(([, value]) => value !== null) }))
    .filter((one) => one.points.length);
  place.hidden = !known.length;
  if (place.hidden || !width) return;
  const [left, right, top, bottom] = [46, width - 10, 10, height - 24];
  const all = known.flatMap((one) => one.points), values = all.map(([, value]) => value);
  const end = Math.max(...all.map(([epoch]) => epoch)) || 1;
  const start = Math.min(end / 2, ...all.map(([epoch]) => epoch));
  const low = fromZero ? 0 : Math.min(...values), most = Math.max(...values);
  const high = most + 0.06 * (most - low) || 1;
  const x = (epoch) => left + ((epoch - start) / (end - start)) * (right - left);
  const y = (value) => bottom - ((value - low) / (high - low || 1)) * (bottom - top);
  const at = cursor === null ? end : Math.min(Math.max(cursor, start), end);
  const nearer = (one, other) => (Math.abs(other[0] - at) < Math.abs(one[0] - at) ? other : one);
  const found = known.map((one) => [one, one.points.reduce(nearer)]);

  place.querySelector(".legend").replaceChildren(
    ...found.map(([{ name, kind }, [, value]]) =>
      key(`line ${kind}`, name, format(value))),
    ...marks.map(([what]) => make("li", {}, make("i", { class: "mark", "data-mark": what }), what)),
    cursor === null ? "" : make("li", { class: "at" }, `epoch ${number(at, 2)}`),
  );
  const text = found.map(([{ name }, [, value]]) => `${name} ${format(value)}`).join(", ");
  const told = {
    viewBox: `0 0 ${width} ${height}`, role: "slider", tabindex: 0, "aria-label": label,
    "aria-valuemin": start, "aria-valuemax": end, "aria-valuenow": at,
    "aria-valuetext": `epoch ${number(at, 2)}: ${text}`,
  };
  for (const [key, value] of Object.entries(told)) svg.setAttribute(key, value);
  const upright = (epoch, attributes, ...children) =>
    make("line", { ...attributes, x1: x(epoch), x2: x(epoch), y1: top, y2: bottom }, ...children);
  svg.replaceChildren(
    ...ticks(low, high, 4).flatMap((tick) => [
      make("line", { class: "rule", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      make("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick, true)),
    ]),
    ...ticks(start, end, Math.max(2, Math.floor(width / 60))).map((tick) =>
      make("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, `${+tick.toFixed(2)}`)),
    ...marks.flatMap(([what, epochs]) =>
      epochs.filter((epoch) => epoch >= start && epoch <= end).map((epoch) =>
        upright(epoch, { class: "mark", "data-mark": what },
          make("title", {}, `${what} at epoch ${number(epoch, 2)}`)))),
    ...known.map(({ kind, points }) =>
      make("path", { class: `curve ${kind}`, d: toPath(points.map(([e, v]) => [x(e), y(v)])) })),
    cursor === null ? "" : upright(at, { class: "cursor" }),
    ...found.map(([{ kind }, [epoch, value]]) =>
      make("circle", { class: kind, cx: x(epoch), cy: y(value), r: 4 })),
  );
  svg.onpointermove = (event) =>
    point(start + ((event.offsetX - left) / (right - left)) * (end - start));
  svg.onpointerleave = svg.onblur = () => point(null);
  svg.onkeydown = (event) => {
    const far = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -1e9, End: 1e9 };
    if (!(event.key in far)) return;
    event.preventDefault();
    point(Math.min(Math.max(at + (far[event.key] * (end - start)) / 60, start), end));
  };
}

// All charts show their values at the same epoch; null: at the newest.
function point(epoch) {
  cursor = epoch;
  drawCharts(state.run);
}

function drawCharts(run) {
  const [accuracy, loss, speed] = find("charts").children, marks = Object.entries(run.marks);
  const of = (name, kind, points, column) =>
    ({ name, kind, points: points.map((values) => [values[1], values[column]]) });
  chart(accuracy, "Accuracy over epochs", [
    of("train top-1", "train", run.train, 3),
    of("val top-1", "val", run.val, 3),
    of("val top-5", "val five", run.val, 4),
  ], marks, (value, isTick) => percent(value, isTick ? 0 : 1), true);
  chart(loss, "Loss over epochs", [
    of("train", "train", run.train, 2),
    of("val", "val", run.val, 2),
  ], marks, (value, isTick) => (isTick ? String(+value.toPrecision(3)) : number(value, 3)), false);
  chart(speed, "Images a second over epochs", [of("all ranks", "val", run.train, 4)],
    marks, (value) => number(value), true);
}

const word = (state) => state.replace(/^(was|has) /, "");
const badge = (run) =>
  make("span", { class: "state", "data-state": run.state }, word(run.state));
const soft = (text) => (text ? make("p", { class: "soft" }, text) : null);
const track = (run) => {
  const share = run.target ? run.step / run.target : 0;
  const bar = make("span", { "--share": share });
  return make("span", { class: "track", "aria-hidden": "true" }, bar);
};

function spark(values) {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return null;
  const low = Math.min(...known), high = Math.max(...known);
  const points = known.map((value, at) =>
    [(60 * at) / (known.length - 1), 20 - (18 * (value - low)) / (high - low || 1)]);
  return make("svg", { viewBox: "0 0 60 22", "aria-hidden": "true" },
    make("path", { class: "curve train", d: toPath(points) }));
}

function card(run) {
  const facts = [
    run.epochs ? `epoch ${number(run.epoch, 1)} of ${number(run.epochs)}` : "",
    (run.top1 ?? null) === null ? "" : `top-1 ${percent(run.top1)}`,
    run.alarms ? count(run.alarms, "alarm") : "",
  ];
  const where = { href: `/?${run.key}`, "aria-current": run.key === state.key ? "page" : null };
  return make("li", {}, make("a", where, make("strong", {}, run.name), badge(run),
    spark(run.spark ?? []), make("small", {}, run.what || facts.filter(Boolean).join(" · ")),
    track(run)));
}

function tiles(run) {
  const tile = (name, value, ...notes) =>
    make("div", { class: "card" }, make("dt", {}, name),
      make("dd", {}, make("p", { class: "big" }, value), ...notes));
  const epochs = run.epochs ? `${number(run.epoch, 2)} / ${number(run.epochs)}` : "–";
  const size = run.start?.global_batch_size;
  const left = run.is_at_work && run.speed ? ((run.target - run.step) * size) / run.speed : 0;
  const steps = `step ${number(run.step)} of ${number(run.target)}`;
  const time = left ? `; about ${duration(left)} of training to go` : "";
  const [step, at] = run.saved ?? [];
  const saved = run.saved && `checkpoint of step ${number(step)}, ${clock(at)}`;
  const top5 = run.top5 && `top-5 ${percent(run.top5, 2)}`;
  return [
    tile("Epoch", epochs, track(run), soft(steps + time), soft(saved)),
    tile("Validation top-1", percent(run.top1, 2), soft(top5)),
    tile("Training loss", number(run.loss, 4), soft("mean of the last log interval")),
    tile("Images a second", number(run.speed), soft(`${percent(run.wait)} waiting for data`)),
  ];
}

const key = (kind, text, value) =>
  make("li", {}, make("i", { class: kind }), `${text} `, make("b", {}, value));
const part = (name, share, title) => make("span", { class: name, "--share": share, title });

function drawRanks(run) {
  find("ranks").parentElement.hidden = !run.ranks.length;
  put("phases", run.phases, () =>
    Object.entries(run.phases).map(([name, text]) => key(`block ${name}`, text, "")));
  put("ranks", run.ranks, () => run.ranks.map((rank) => {
    const shares = Object.entries(rank.shares);
    const texts = shares.map(([name, share]) => `${run.phases[name]} ${percent(share)}`);
    const stood = rank.state === "running" ? "" : `, ${rank.state}`;
    return make("li", {}, make("span", {}, `rank ${rank.rank} on ${rank.host}${stood}`),
      make("span", { class: "stack", role: "img", "aria-label": texts.join(", ") },
        ...shares.map(([name, share], at) => part(name, share, texts[at]))));
  }));
}

function drawLedger({ ledger, classes }) {
  const total = ledger ? ledger.end - ledger.begin : 0;
  const seconds = total ? Object.entries(ledger.seconds).filter(([, value]) => value > 0) : [];
  const texts = seconds.map(([name, value]) => `${classes[name]} ${duration(value)}`);
  say("goodput", total
    ? `${percent(ledger.goodput)} of ${duration(total)} went into steps of training that count. ` +
      `${count(ledger.num_attempts, "attempt")}, ${count(ledger.num_preemptions, "preemption")}, ` +
      `${count(ledger.num_lost_steps, "step")} done again.`
    : "Nothing yet.");
  find("ledger").hidden = !total;
  find("ledger").setAttribute("aria-label", texts.join(", "));
  put("ledger", seconds, () =>
    seconds.map(([name, value], at) => part(name, value / total, texts[at])));
  put("classes", seconds, () => seconds.map(([name, value]) =>
    key(`block ${name}`, classes[name], `${duration(value)}, ${percent(value / total)}`)));
}

function told(rows, none) {
  if (!rows.length) return make("li", { class: "soft" }, none);
  return rows.map((row) => make("li", {}, make("strong", {}, row.what),
    make("span", { class: "soft" }, ` ${clock(row.time)}, step ${number(row.step)}`),
    row.text ? make("p", {}, row.text) : null));
}

function drawLog(run) {
  const lines = find("lines");
  const isAtEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 8;
  say("log", run.log ?? "There is no log here: jobs that were started by launch leave one.");
  lines.hidden = !run.lines;
  say("lines", (run.lines ?? []).join("\n"));
  if (isAtEnd) lines.scrollTop = lines.scrollHeight;
}

function drawRun(run) {
  const start = run.start;
  say("name", run.name);
  put("state", run.state, () => badge(run));
  say("sentence", run.sentence ?? "");
  say("next", run.next ? `Next: ${run.next}` : "");
  say("facts", start ? `${start.shard_set ?? "images"}: ${number(start.num_train_samples)} to ` +
    `train on; ${count(start.world_size, "rank")} on ${start.device}, ${start.precision}, ` +
    `${number(start.global_batch_size)} images a step` : "");
  put("faults", [run.what, ...(run.faults ?? [])], (texts) =>
    texts.filter(Boolean).map((text) => make("p", { class: "note alarm" }, text)));
  for (const part of find("run").querySelectorAll("dl, .grid, section")) part.hidden = !run.train;
  if (!run.train) return;
  const { state, step, target, loss, speed, top1, saved } = run;
  put("tiles", [state, step, target, loss, speed, top1, saved], () => tiles(run));
  drawCharts(run);
  drawRanks(run);
  drawLedger(run);
  say("num-alarms", run.alarms ? number(run.alarms) : "");
  put("alarms", run.alarm_rows, (rows) => told(rows, "None."));
  put("events", run.event_rows, (rows) => told(rows, "Nothing yet."));
  drawLog(run);
}

function draw() {
  const { run, runs, others } = state;
  say("root", state.root);
  put("runs", [runs, state.key], () => runs.map(card));
  const current = find("runs").querySelector("[aria-current]");
  if (chosen !== state.key && current) find("runs").scrollLeft = current.offsetLeft - 20;
  chosen = state.key;
  find("rest").hidden = !others.length;
  say("rest-title", `${number(others.length)} other ${others.length === 1 ? "entry" : "entries"}`);
  put("others", others, () => others.map((each) =>
    make("li", {}, make("strong", {}, each.name), ` ${each.what}`)));
  find("run").hidden = !run;
  find("note").hidden = Boolean(run);
  document.title = run ? `${word(run.state)}: ${run.name}` : "Runs";
  if (run) drawRun(run);
  else if (state.fault) say("note", state.fault);
  else if (state.key) say("note", "There is no such run here now. If it comes back, it is shown.");
  else say("note", "There is no run in the folder yet. The first one is shown when it begins.");
}

async function ask() {
  try {
    const signal = AbortSignal.timeout(20000);
    const answer = await fetch(`/state.json${location.search}`, { signal });
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
