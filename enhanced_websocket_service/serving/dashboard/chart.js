// The session's 5-minute bars, and the bar that is forming out of live ticks.

/* global Plotly */
const BAR_MS = 300_000;
const wall = (iso) => iso.slice(0, 19); // the chart shows local wall time as it stands in the text
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Chart {
  constructor(element, empty) {
    this.element = element;
    this.empty = empty;
    this.bars = new Map(); // wall time of the open -> bar
    this.style = "candles";
    this.price = null;
    this.scheduled = false;
    new ResizeObserver(() => this.drawn && Plotly.Plots.resize(this.element)).observe(element);
  }

  replace(bars) {
    this.bars.clear();
    for (const bar of bars) this.bars.set(wall(bar.datetime), bar);
    this.redraw();
  }

  /** A published bar wins over the forming one, a higher revision over a lower. */
  put(bar) {
    const key = wall(bar.datetime);
    const old = this.bars.get(key);
    if (old && !old.forming && old.revision > bar.revision) return;
    this.bars.set(key, bar);
    this.redraw();
  }

  tick(iso, price) {
    this.price = price;
    const text = wall(iso);
    const open = new Date(Math.floor(Date.parse(`${text}Z`) / BAR_MS) * BAR_MS).toISOString();
    const key = wall(open);
    const bar = this.bars.get(key);
    if (!bar) {
      this.bars.set(key, { datetime: key, open: price, high: price, low: price, close: price, forming: true });
    } else if (bar.forming) {
      bar.high = Math.max(bar.high, price);
      bar.low = Math.min(bar.low, price);
      bar.close = price;
    }
    this.redraw();
  }

  range(lows, highs) {
    const known = this.price === null ? [] : [this.price];
    const low = Math.min(...lows, ...known), high = Math.max(...highs, ...known);
    const margin = Math.max((high - low) * 0.06, 0.5);
    return [low - margin, high + margin];
  }

  redraw() {
    if (this.scheduled) return; // at most once a frame, however many ticks come
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.draw();
    });
  }

  draw() {
    const keys = [...this.bars.keys()].sort();
    this.empty.hidden = keys.length > 0;
    this.element.hidden = keys.length === 0;
    if (!keys.length) return;
    const column = (name) => keys.map((key) => this.bars.get(key)[name]);
    const up = css("--up"), down = css("--down"), line = css("--line"), muted = css("--muted");
    const trace = this.style === "candles"
      ? { type: "candlestick", x: keys, open: column("open"), high: column("high"), low: column("low"),
          close: column("close"), increasing: { line: { color: up, width: 1.4 }, fillcolor: up },
          decreasing: { line: { color: down, width: 1.4 }, fillcolor: down }, name: "" }
      : { type: "scatter", mode: "lines", x: keys, y: column("close"), name: "close",
          line: { color: css("--accent"), width: 2.2 } };
    const day = keys[keys.length - 1].slice(0, 10);
    const axis = { gridcolor: line, linecolor: line, zeroline: false, tickfont: { color: muted } };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      margin: { l: 8, r: 70, t: 8, b: 30 }, font: { family: "inherit", size: 12 },
      hovermode: "x unified", hoverlabel: { bgcolor: css("--panel"), bordercolor: line, font: { color: css("--text") } },
      dragmode: "pan", uirevision: day,
      xaxis: { ...axis, type: "date", rangeslider: { visible: false }, range: [`${day}T07:55:00`, `${day}T13:05:00`] },
      yaxis: { ...axis, side: "right", tickformat: ",.2f", range: this.range(column("low"), column("high")) },
    };
    if (this.price !== null) {
      layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: this.price, y1: this.price,
        line: { color: css("--accent"), width: 1, dash: "dot" } }];
      layout.annotations = [{ xref: "paper", x: 1, y: this.price, xanchor: "left", showarrow: false,
        text: this.price.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 }),
        font: { color: css("--panel"), size: 11 }, bgcolor: css("--accent"), borderpad: 3 }];
    }
    Plotly.react(this.element, [trace], layout, { displayModeBar: false, scrollZoom: true, responsive: false });
    this.drawn = true;
  }
}
