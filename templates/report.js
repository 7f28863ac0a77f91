"use strict";
// Draws the report from the data beside it. Words of the run only ever become text, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const report = document.getElementById("report");
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8, DASHES = ["", "7 4", "2 3", "10 3 2 3", "1 4", "12 5", "5 2 1 2", "3 6"];

function make(name, attributes = {}, ...children) {
  const drawn = ["svg", "path", "line", "text", "rect", "g", "title"].includes(name);
  const element = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

// --- words ---------------------------------------------------------------------------------------

function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  for (const [limit, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]])
    if (size >= limit) return `${trim(value / (suffix === "k" ? 1e3 : limit))}${suffix}`;
  if (size !== 0 && size < 1e-3) return value.toExponential(2);
  return trim(value);
}
const trim = value => String(parseFloat(value.toPrecision(4)));
const percent = value => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
const gib = value => value === null || value === undefined ? "–" : `${value.toFixed(2)} GiB`;

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0";
  if (seconds < 1e-3) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${trim(parseFloat((seconds * 1e3).toPrecision(3)))} ms`;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
const clock = time => time === null ? "–" : new Date(time * 1000).toLocaleString("sv-SE");
const tone = state => state === "completed" ? "good" : ["queued", "prepared", "paused", "running", "unknown"].includes(state) ? "wait" : "bad";
const badge = state => make("span", {class: `badge ${tone(state)}`}, state);

// --- curves --------------------------------------------------------------------------------------

function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(each => each * power).find(each => each >= rough);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index++) found.push(index * step);
  return found;
}

function powers(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power++)
    for (const digit of high - low > 3 ? [1] : [1, 2, 5]) {
      const place = power + Math.log10(digit);
      if (place >= low && place <= high) found.push(place);
    }
  return found.length > 1 ? found : [low, high];
}

// A chart over steps: hover or arrow keys read it, dragging zooms, a button sets a logarithmic scale.
class Chart {
  constructor(title, series, {format = number, wide = false} = {}) {
    Object.assign(this, {title, series, format, log: false, range: null});
    [this.width, this.height] = wide ? [1180, 330] : [560, 250];
    this.left = 62; this.top = 10; this.right = 12; this.bottom = 28;
    this.svg = make("svg", {viewBox: `0 0 ${this.width} ${this.height}`, role: "img", tabindex: "0", "aria-label": this.described()});
    this.tip = make("div", {class: "tip", role: "status", hidden: ""});
    this.scale = make("button", {type: "button", "aria-pressed": "false"}, "log scale");
    this.whole = make("button", {type: "button", hidden: ""}, "whole curve");
    this.scale.onclick = () => { this.log = !this.log; this.scale.setAttribute("aria-pressed", this.log); this.draw(); };
    this.whole.onclick = () => this.zoom(null);
    this.element = make("section", {class: `card${wide ? " wide" : ""}`},
      make("div", {class: "head"}, make("h3", {}, title), this.whole, this.scale),
      make("div", {class: "chart"}, this.svg, this.tip), series.length > 1 ? legend(series) : null);
    this.listen();
    this.draw();
  }

  described() {
    const ends = this.series.map(({name, step, value}) => {
      const known = step.map((each, place) => [each, value[place]]).filter(([, each]) => each !== null);
      return known.length ? `${name}: ${this.format(known[0][1])} at step ${known[0][0]}, ${this.format(known.at(-1)[1])} at step ${known.at(-1)[0]}` : `${name}: no values`;
    });
    return `${this.title} over steps. ${ends.join("; ")}`;
  }

  bounds() {
    let [first, last] = this.range || [Infinity, -Infinity];
    if (!this.range) for (const {step} of this.series) if (step.length) [first, last] = [Math.min(first, step[0]), Math.max(last, step.at(-1))];
    let low = Infinity, high = -Infinity;
    for (const {step, value} of this.series)
      for (let place = 0; place < step.length; place++) {
        const each = value[place];
        if (each === null || step[place] < first || step[place] > last || (this.log && each <= 0)) continue;
        const height = this.log ? Math.log10(each) : each;
        low = Math.min(low, height); high = Math.max(high, height);
      }
    if (first > last) [first, last] = [0, 1];
    if (low > high) [low, high] = this.log ? [-1, 0] : [0, 1];
    const room = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
    const floor = !this.log && low >= 0 && low < room ? 0 : low - room;
    return {first, last: last > first ? last : first + 1, low: floor, high: high + room};
  }

  draw() {
    const box = this.box = this.bounds();
    this.x = step => this.left + (step - box.first) / (box.last - box.first) * (this.width - this.left - this.right);
    this.y = value => this.height - this.bottom - ((this.log ? Math.log10(value) : value) - box.low) / (box.high - box.low) * (this.height - this.top - this.bottom);
    const parts = [make("title", {}, this.title)];
    for (const place of this.log ? powers(box.low, box.high) : ticks(box.low, box.high, 5)) {
      const value = this.log ? 10 ** place : place, height = this.y(value);
      parts.push(make("line", {class: "grid", x1: this.left, x2: this.width - this.right, y1: height, y2: height}),
        make("text", {x: this.left - 8, y: height + 4, "text-anchor": "end"}, this.format(value)));
    }
    for (const step of ticks(box.first, box.last, this.width / 110).filter(Number.isInteger))
      parts.push(make("text", {x: this.x(step), y: this.height - 8, "text-anchor": "middle"}, number(step)));
    parts.push(make("line", {class: "axis", x1: this.left, x2: this.width - this.right, y1: this.height - this.bottom, y2: this.height - this.bottom}));
    this.series.forEach((each, index) => parts.push(...this.curve(each, index)));
    this.cursor = make("line", {class: "cursor", y1: this.top, y2: this.height - this.bottom, visibility: "hidden"});
    this.frame = make("rect", {class: "zoom", y: this.top, height: this.height - this.top - this.bottom, visibility: "hidden"});
    this.svg.replaceChildren(...parts, this.frame, this.cursor);
  }

  curve({step, value, odd, name}, index) {
    const {first, last} = this.box;
    let path = "", points = 0, pen = false, alone = false;
    for (let place = 0; place < step.length; place++) {
      const each = value[place], near = step[Math.min(place + 1, step.length - 1)] >= first && step[Math.max(place - 1, 0)] <= last;
      if (each === null || !near || (this.log && each <= 0)) { pen = false; continue; }
      alone = !pen && (place + 1 === step.length || value[place + 1] === null);
      path += `${pen ? "L" : "M"}${this.x(step[place]).toFixed(1)} ${this.y(each).toFixed(1)}${alone ? "h.1" : ""}`;
      pen = true; points++;
    }
    const colour = `var(--s${index % COLOURS})`;
    const drawn = [make("path", {class: "curve", d: path, stroke: colour, "stroke-dasharray": DASHES[index % DASHES.length],
      "stroke-linecap": "round", "data-points": points, "data-name": name})];
    for (const [at, words] of odd || []) if (at >= first && at <= last) {
      const x = this.x(at), y = this.height - this.bottom - 9;
      drawn.push(make("path", {class: "odd", d: `M${x - 4} ${y - 4}l8 8m0-8l-8 8`}, make("title", {}, `${name} is ${words} at step ${at}`)));
    }
    return drawn;
  }

  listen() {
    const at = event => {
      const area = this.svg.getBoundingClientRect();
      const across = (event.clientX - area.left) / area.width * this.width;
      return this.box.first + (across - this.left) / (this.width - this.left - this.right) * (this.box.last - this.box.first);
    };
    let from = null;
    this.svg.onpointerdown = event => { from = at(event); this.svg.setPointerCapture(event.pointerId); };
    this.svg.onpointermove = event => {
      this.read(at(event));
      if (from === null) return;
      const [start, end] = [from, at(event)].map(step => this.x(step)).sort((a, b) => a - b);
      for (const [key, value] of [["x", start], ["width", end - start], ["visibility", "visible"]]) this.frame.setAttribute(key, value);
    };
    this.svg.onpointerup = event => {
      const [start, end] = [from, at(event)].sort((a, b) => a - b);
      const wide = from !== null && Math.abs(this.x(end) - this.x(start)) > 8;
      from = null;
      this.frame.setAttribute("visibility", "hidden");
      if (wide) this.zoom([Math.max(start, this.box.first), Math.min(end, this.box.last)]);
    };
    this.svg.onpointerleave = () => { if (from === null) this.forget(); };
    this.svg.onblur = () => this.forget();
    this.svg.ondblclick = () => this.zoom(null);
    this.svg.onkeydown = event => {
      const far = {ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20}[event.key];
      if (event.key === "Escape") this.zoom(null);
      if (!far) return;
      event.preventDefault();
      const steps = this.series.find(each => each.step.length)?.step || [];
      const place = Math.max(0, Math.min(steps.length - 1, nearest(steps, this.shown ?? this.box.first) + far));
      if (steps.length) this.read(steps[place]);
    };
  }

  zoom(range) { this.range = range; this.whole.hidden = range === null; this.forget(); this.draw(); }

  forget() { this.tip.hidden = true; this.shown = null; this.cursor.setAttribute("visibility", "hidden"); }

  read(wanted) {
    const lines = [];
    let shown = null;
    for (const {name, step, value, odd} of this.series) {
      if (!step.length) continue;
      const place = nearest(step, wanted), words = (odd || []).find(each => each[0] === step[place]);
      if (shown === null || Math.abs(step[place] - wanted) < Math.abs(shown - wanted)) shown = step[place];
      lines.push(`${this.series.length > 1 ? `${name}: ` : ""}${words ? words[1] : this.format(value[place])}${this.series.length > 1 ? ` (step ${step[place]})` : ""}`);
    }
    if (shown === null) return;
    this.shown = shown;
    const x = Math.max(this.left, Math.min(this.width - this.right, this.x(shown)));
    for (const [key, place] of [["x1", x], ["x2", x], ["visibility", "visible"]]) this.cursor.setAttribute(key, place);
    this.tip.replaceChildren(make("b", {}, `step ${shown}`), ...lines.flatMap(line => [make("br"), line]));
    this.tip.hidden = false;
    const share = x / this.width;
    this.tip.style.left = share < 0.6 ? `${100 * share + 1.5}%` : "auto";
    this.tip.style.right = share < 0.6 ? "auto" : `${100 * (1 - share) + 1.5}%`;
    this.tip.style.top = "8%";
  }
}

function nearest(sorted, wanted) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (sorted[middle] < wanted) low = middle; else high = middle; }
  return Math.abs(sorted[low] - wanted) <= Math.abs(sorted[high] - wanted) ? low : high;
}

function legend(series) {
  return make("div", {class: "legend"}, ...series.map(({name}, index) => make("span", {},
    make("svg", {width: 30, height: 10, "aria-hidden": "true"}, make("path", {d: "M1 5h28", class: "curve", stroke: `var(--s${index % COLOURS})`, "stroke-dasharray": DASHES[index % DASHES.length]})), name)));
}

// --- parts of a run ------------------------------------------------------------------------------

const part = (title, ...children) => make("section", {class: "card wide"}, make("div", {class: "head"}, make("h3", {}, title)), ...children);
const tile = (name, value, more) => make("div", {class: "tile"}, make("small", {}, name), make("b", {}, value), make("span", {}, more || ""));

const own = run => run.numbers.steps === null;  // a program of the user's own, of which no step is known

function tiles(run) {
  const found = run.numbers, change = found.planned_step_seconds && found.step_seconds ? `planned ${span(found.planned_step_seconds)}` : "no plan to compare with";
  const cost = tile("node-hours", number(found.node_hours), `${found.attempts} ${found.attempts === 1 ? "attempt" : "attempts"}`);
  return own(run) ? make("div", {class: "tiles"}, cost) : make("div", {class: "tiles"},
    tile("loss", number(found.last_loss), found.first_loss === null ? "no step yet" : `from ${number(found.first_loss)}`),
    found.validation_loss === null ? null : tile("validation loss", number(found.validation_loss), "newest evaluation"),
    tile("steps", number(found.step), `of ${number(found.steps)}`),
    tile("tokens/s", number(found.tokens_per_second), `${number(found.tokens)} tokens in all`),
    tile("a step", span(found.step_seconds), change),
    tile("MFU of rank 0", percent(found.mfu), found.planned_mfu ? `planned ${percent(found.planned_mfu)}` : ""),
    tile("memory, fullest rank", gib(found.memory_gib), found.planned_memory_gib ? `planned ${gib(found.planned_memory_gib)}` : ""), cost);
}

const BARS = {compute: [0, ""], optimizer: [3, "p3"], idle: [7, ""], all_reduce: [1, "p1"], all_gather: [4, "p2"], reduce_scatter: [2, "p4"],
  broadcast: [6, "p5"], p2p: [5, "p1"], other: [7, "p3"]};
const look = name => BARS[name] || [6, "p2"];

function accounts(run) {
  const known = run.accounts.filter(each => Object.keys(each.seconds).length);
  if (!known.length) return null;
  const names = Object.keys(BARS).concat(known.flatMap(each => Object.keys(each.seconds))).filter((name, place, all) => all.indexOf(name) === place && known.some(each => each.seconds[name] > 0));
  const total = each => Object.values(each.seconds).reduce((sum, value) => sum + value, 0), longest = Math.max(...known.map(total));
  const rows = known.flatMap(each => [make("span", {}, `rank ${each.rank}${each.host ? ` · ${each.host}` : ""}`),
    make("div", {class: "bar", role: "img", "aria-label": names.map(name => `${name} ${span(each.seconds[name] || 0)}`).join(", ")},
      ...names.map(name => {
        const share = (each.seconds[name] || 0) / longest, [colour, pattern] = look(name);
        const piece = make("i", {class: pattern, style: `width:${100 * share}%;background-color:var(--s${colour})`, title: `${name}: ${span(each.seconds[name] || 0)}`});
        if (share > 0.12) piece.append(name.replace("_", "-"));
        return piece;
      })),
    make("span", {}, `${span(total(each))}${each.memory_peak ? ` · ${gib(each.memory_peak / 2 ** 30)}` : ""}`)]);
  const keys = make("div", {class: "legend"}, ...names.map(name => make("span", {}, make("i", {class: `key ${look(name)[1]}`, style: `background-color:var(--s${look(name)[0]})`}), name.replace("_", "-"))));
  const left = run.ranks > known.length ? ` ${known.length} of ${run.ranks} ranks are shown, the slowest among them.` : "";
  return part("Where the time of a step goes, rank by rank", make("div", {class: `bars${known.length > 24 ? " many" : ""}`}, ...rows), keys,
    make("p", {class: "soft"}, `Mean of the newest ${number(Math.max(...known.map(each => each.steps)))} steps; at the end of a line the whole step and the most memory so far.${left}`));
}

function plan(run) {
  if (!run.plan.length) return null;
  const longest = Math.max(...run.plan.flatMap(each => [each.planned, each.measured])) || 1;
  const rows = run.plan.flatMap(each => [["planned", "p1"], ["measured", ""]].flatMap(([which, pattern]) => [
    make("span", {}, which === "planned" ? each.term : ""),
    make("div", {class: `bar thin ${which}`, title: `${each.term}, ${which}: ${span(each[which])}`}, make("i", {class: pattern, style: `width:${100 * each[which] / longest}%;background-color:var(--s${which === "planned" ? 7 : 0})`})),
    make("span", {}, `${span(each[which])} ${which}`)]));
  const found = run.numbers, ratio = found.step_seconds / found.planned_step_seconds;
  return part("Plan against measured", make("div", {class: "bars"}, ...rows),
    make("p", {class: "soft"}, `A step was planned to take ${span(found.planned_step_seconds)} and takes ${span(found.step_seconds)} (${ratio.toFixed(2)} times as long); its fullest rank was planned to need ${gib(found.planned_memory_gib)} and took ${gib(found.memory_gib)}. Terms are means over ranks; what a plan hides behind computing is no term of it.`));
}

function attempts(run) {
  if (!run.attempts.length) return null;
  const times = run.attempts.flatMap(each => [each.submitted, each.began, each.ended]).filter(each => each !== null);
  const going = run.attempts.some(each => each.ended === null && each.submitted !== null && ["queued", "running", "unknown"].includes(each.state));
  const first = Math.min(...times), last = Math.max(...times, going ? run.now : first + 1e-3), across = time => 100 * (time - first) / (last - first);
  const bars = run.attempts.flatMap(each => {
    const end = each.ended ?? (going ? run.now : each.began ?? each.submitted), pieces = [];
    const add = (from, to, words, colour, pattern) => pieces.push(make("i", {class: pattern, title: `${words}: ${span(to - from)}`,
      style: `position:absolute;left:${across(from)}%;width:max(2px,${across(to) - across(from)}%);background-color:var(--s${colour})`}, across(to) - across(from) > 9 ? words : ""));
    if (each.submitted !== null && (each.began ?? end) > each.submitted) add(each.submitted, each.began ?? end, "queued", 4, "p2");
    if (each.began !== null && end >= each.began) add(each.began, end, `ran, ${each.state}`, {good: 2, wait: 0, bad: 1}[tone(each.state)], tone(each.state) === "bad" ? "p1" : "");
    return [make("span", {}, `attempt ${each.number}`), make("div", {class: "bar", style: "position:relative"}, ...pieces),
      make("span", {}, each.first_step === null ? "no step" : `steps ${each.first_step}–${each.last_step}`)];
  });
  const table = grid(["attempt", "job", "state", "submitted", "began", "ended", "steps", "reason"], run.attempts.map(each => [each.number, each.job_id ?? "–", each.state, clock(each.submitted), clock(each.began), clock(each.ended),
    each.first_step === null ? "–" : `${each.first_step}–${each.last_step}`, each.reason]));
  return part("Attempts", times.length ? make("div", {class: "bars"}, ...bars) : null,
    make("p", {class: "soft"}, times.length ? `${clock(first)} to ${clock(last)}, ${span(last - first)}` : ""), make("div", {class: "scroll"}, table));
}

function grid(names, rows, numeric = []) {
  return make("table", {}, make("thead", {}, make("tr", {}, ...names.map((name, place) => make("th", {scope: "col", class: numeric.includes(place) ? "n" : ""}, name)))),
    make("tbody", {}, ...rows.map(row => make("tr", {}, ...row.map((cell, place) => make("td", {class: numeric.includes(place) ? "n" : ""}, cell instanceof Node ? cell : String(cell)))))));
}

function failure(run) {
  if (!run.failure) return null;
  const {who, cause, advice, lines} = run.failure;
  return make("section", {class: "card failure", role: "note"}, make("h3", {class: "bad"}, `What went wrong${who ? `: ${who}` : ""}`),
    cause ? make("p", {}, cause) : null, advice ? make("p", {class: "soft"}, advice) : null,
    lines.length ? make("details", {}, make("summary", {}, "last words"), make("pre", {tabindex: "0"}, lines.join("\n"))) : null);
}

function fold(title, ...children) { return make("details", {}, make("summary", {}, title), ...children); }

function header(run, heading) {
  return make("header", {}, make(heading, {}, run.run, badge(run.state)),
    make("p", {class: "soft"}, `${run.name} · ${run.what} · ${run.ranks} ${run.ranks === 1 ? "rank" : "ranks"} on ${run.nodes} ${run.nodes === 1 ? "node" : "nodes"} of ${run.site}`),
    run.reason ? make("p", {}, run.reason) : null);
}

function show(run, heading) {
  const {loss, validation_loss, ...others} = run.curves;
  const losses = [{name: "training", ...loss}];
  if (validation_loss.step.length) losses.push({name: "validation", ...validation_loss});
  const drawn = Object.entries(others).filter(([, each]) => each.value.some(value => value !== null)).map(([name, each]) =>
    new Chart(data.titles[name], [{name, ...each}], {format: name === "step_seconds" ? span : number}).element);
  const any = loss.step.length > 0;
  return [header(run, heading), failure(run), tiles(run),
    any ? make("div", {class: "cards"}, new Chart("Loss", losses, {wide: true}).element, ...drawn, accounts(run), plan(run), attempts(run))
      : make("div", {class: "cards"}, own(run) ? null : part("No step has been recorded", make("p", {class: "soft"}, "Curves appear with the first one.")), attempts(run)),
    run.events.length ? fold("What the ranks reached", make("div", {class: "scroll"}, grid(["time", "attempt", "event", "told"], run.events.map(each => [clock(each.time), each.attempt, each.kind, each.told])))) : null,
    fold("Experiment, as it was given", make("pre", {tabindex: "0"}, run.experiment)),
    fold("Versions", grid(["what", "version"], Object.entries(run.versions)))].filter(each => each !== null);
}

function comparison(runs) {
  const over = name => runs.map(each => ({name: each.run, ...each.curves[name]}));
  const rows = data.compared.map(({name, values, best}) => [name, ...values.map((value, place) => make("span", {class: best.includes(place) ? "best" : ""}, `${value}${best.includes(place) ? " ★" : ""}`))]);
  return [make("h1", {}, `${runs.length} runs`), make("p", {class: "soft"}, runs.map(each => each.run).join(" · ")),
    make("div", {class: "cards", style: "margin-top:18px"}, new Chart("Loss", over("loss"), {wide: true}).element,
      new Chart(data.titles.tokens_per_second, over("tokens_per_second")).element, new Chart(data.titles.step_seconds, over("step_seconds"), {format: span}).element,
      part("Side by side", make("div", {class: "scroll"}, grid(["", ...runs.map(each => each.run)], rows)), make("p", {class: "soft"}, "★ best of its row")))];
}

const several = data.runs.length > 1;
report.replaceChildren(...(several ? comparison(data.runs) : []), ...data.runs.flatMap(run => show(run, several ? "h2" : "h1")),
  make("p", {class: "soft", style: "margin-top:30px"}, `Drawn ${clock(data.time)} by hpcdl ${data.version}. Hover or use the arrow keys to read a curve, drag to zoom.`));
