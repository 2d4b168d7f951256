// The KV cache, a cell for each block, coloured by the tenant that holds it.

const FREE = 0;
const CACHED = 1;
const OTHERS = 255;
const COLOURS = ["#e8912d", "#3d8bd4", "#b65fcf", "#2f9e77", "#d9534f", "#14a3b8", "#9a8b1f", "#7a6ff0"];

/** The colour of a block's code. */
export function colour(code) {
  const styles = getComputedStyle(document.documentElement);
  if (code === FREE) return styles.getPropertyValue("--map-free").trim();
  if (code === CACHED) return styles.getPropertyValue("--map-cached").trim();
  if (code === OTHERS) return styles.getPropertyValue("--map-others").trim();
  const tenant = code - 2;
  // Beyond the list: hues as far from one another as they get.
  return COLOURS[tenant] ?? `hsl(${(tenant * 137.5) % 360} 55% 55%)`;
}

/** The blocks' codes, kept up with what the server says has changed. */
export class KvMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.codes = new Uint8Array(0);
    this.counts = new Uint32Array(256);
    new ResizeObserver(() => this.layOut()).observe(canvas.parentElement);
  }

  /** Begins anew with a pool of free blocks. */
  reset(total) {
    this.codes = new Uint8Array(total);
    this.counts.fill(0);
    this.counts[FREE] = total;
    this.layOut();
  }

  /** Applies runs of (skip, length, code) in base64; counts are LEB128. */
  apply(changes) {
    const bytes = Uint8Array.from(atob(changes), (char) => char.charCodeAt(0));
    let at = 0;
    let block = 0;
    const count = () => {
      let value = 0;
      for (let scale = 1; ; scale *= 128) {
        const byte = bytes[at++];
        value += (byte & 127) * scale;
        if (byte < 128) return value;
      }
    };
    while (at < bytes.length) {
      block += count();
      const end = Math.min(block + count(), this.codes.length);
      const code = bytes[at++];
      for (; block < end; block++) {
        this.counts[this.codes[block]]--;
        this.counts[code]++;
        this.codes[block] = code;
      }
    }
    if (bytes.length) this.draw();
  }

  /**
   * Chooses cells as large as fit, in a frame about twice as wide as it is high. Where even the
   * smallest are too many, each stands for several blocks.
   */
  layOut() {
    const total = this.codes.length;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.floor(this.canvas.parentElement.clientWidth * ratio);
    if (!total || !width) return;
    const [least, most] = [Math.floor(3 * ratio), Math.floor(18 * ratio)];
    const fitting = Math.floor(width / Math.ceil(Math.sqrt(total * 2)));
    this.cell = Math.max(least, Math.min(fitting, most));
    this.columns = Math.max(1, Math.min(total, Math.floor(width / this.cell)));
    this.gap = this.cell >= 4 * ratio ? Math.max(1, Math.floor(this.cell / 8)) : 0;
    this.stride = Math.ceil(total / this.columns / Math.ceil(this.columns * 0.6));
    if (this.cell > least) this.stride = 1;
    const rows = Math.ceil(total / this.stride / this.columns);
    this.canvas.width = this.columns * this.cell;
    this.canvas.height = rows * this.cell;
    this.canvas.style.width = `${this.canvas.width / ratio}px`;
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas;
    if (!this.codes.length || !this.columns) return;
    const image = this.context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const palette = new Uint32Array(256);
    this.counts.forEach((count, code) => {
      if (count) palette[code] = this.pixel(colour(code));
    });
    const { columns, cell, gap, stride, codes } = this;
    const side = cell - gap;
    for (let block = 0, at = 0; block < codes.length; at++) {
      // A block that a tenant holds is seen among many that are free.
      let code = codes[block];
      const end = Math.min(block + stride, codes.length);
      while (++block < end) code = Math.max(code, codes[block]);
      const from = Math.floor(at / columns) * cell * width + (at % columns) * cell;
      for (let y = 0; y < side; y++) {
        pixels.fill(palette[code], from + y * width, from + y * width + side);
      }
    }
    this.context.putImageData(image, 0, 0);
  }

  /** A colour as a pixel's 32 bits. */
  pixel(colour) {
    this.context.fillStyle = colour;
    this.context.fillRect(0, 0, 1, 1);
    return new Uint32Array(this.context.getImageData(0, 0, 1, 1).data.buffer)[0];
  }
}
