// Effects over the image: of pictures on a canvas, of volumes by NiiVue. Both take their colors, outlines and numbers from here.
"use strict";
(() => {
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const volume = data.shape.length === 3;
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const levels = [null, 0.2, 0.1, 0.05, 0.01, 0.001];
  // As in the pictures: the region of interest, the prediction, and broken the reference.
  const outlineColors = { 1: [46, 230, 46], 2: [255, 217, 47], 4: [255, 255, 255] };
  const count = data.shape.reduce((product, length) => product * length, 1);

  async function unpacked(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }
  const bytes = async (text) => new Uint8Array(await unpacked(text));
  const numbers = async (text) => (data.wide ? new Uint32Array(await unpacked(text)) : new Uint16Array(await unpacked(text)));

  // What is shown now.
  const state = { map: 0, least: 0, level: null, opacity: 0.85, outlines: true, chosen: -1 };
  let units, image, outlines;

  const isShown = (unit) => {
    const effect = data.effect[unit];
    if (effect === null || effect === 0 || Math.abs(effect) < state.least) return false;
    const p = data.adjusted_p_value[unit];
    return state.level === null || (p !== null && p <= state.level);
  };

  // Per unit red, green, blue and opacity; the more opaque the larger. Number 0 is where there is no unit.
  function palette() {
    const found = new Uint8ClampedArray(4 * (data.effect.length + 1));
    data.effect.forEach((effect, unit) => {
      if (!isShown(unit)) return;
      const share = Math.max(-1, Math.min(1, effect / data.limit));
      const color = 3 * Math.round(127 + 127 * share);
      for (let k = 0; k < 3; k++) found[4 * (unit + 1) + k] = data.colors[color + k];
      found[4 * (unit + 1) + 3] = 255 * state.opacity * Math.sqrt(Math.abs(share));
    });
    return found;
  }

  const digits = (value) => String(Number(Math.abs(value).toPrecision(3)));
  const small = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + digits(value);
  function said(unit) {
    if (unit < 0) return "No part that was replaced lies here.";
    const lines = [`${data.axes} ${data.places[unit]}`];
    const effect = data.effect[unit];
    if (effect === null) lines.push("effect not known");
    else if (effect === 0) lines.push("effect 0");
    else lines.push(`${data.words[effect > 0 ? 0 : 1]}: effect ${small(effect)} on the ${data.score}`);
    if (effect !== null && data.lower[unit] !== null && data.draws[unit] > 0)
      lines.push(`95 % interval ${small(data.lower[unit])} to ${small(data.upper[unit])}`);
    const p = data.adjusted_p_value[unit];
    if (p !== null) lines.push(`adjusted p ${p < 0.001 ? "< 0.001" : "= " + p.toPrecision(2)}`);
    lines.push(data.statuses[data.status[unit]] + (data.draws[unit] > 0 ? `, ${data.draws[unit]} draws` : ""));
    if (data.distances[unit]) lines.push(`${data.distances[unit]} from the region of interest` + (data.directions[unit] ? `, ${data.directions[unit]} of its center` : ""));
    return lines.join(" · ");
  }

  function choose(unit) {
    state.chosen = unit;
    part("chosen").textContent = said(unit);
  }

  // Rows of tables that lead here.
  function lead(go) {
    document.querySelectorAll("button[data-unit]").forEach((button) => {
      const unit = data.ids.indexOf(Number(button.dataset.unit));
      if (unit < 0) return;
      button.disabled = false;
      button.addEventListener("click", () => {
        const map = maps.findIndex((one) => one.includes(unit + 1));
        if (map >= 0 && map !== state.map) {
          part("map").value = String(map);
          useMap(map);
        }
        go(unit);
        root.scrollIntoView({ block: "start" });
        part("canvas").focus({ preventScroll: true });
      });
    });
  }

  let maps = [];
  let images = [];
  let view;

  function useMap(map) {
    state.map = map;
    units = maps[map];
    image = images[map];
    view.mapChanged();
    changed();
  }

  function changed() {
    const shown = data.effect.reduce((sum, _, unit) => sum + (isShown(unit) ? 1 : 0), 0);
    part("effect-said").textContent = state.least === 0 ? "all" : `at least ${digits(state.least)}`;
    part("level-said").textContent = state.level === null ? "all" : `false discovery rate ${state.level}`;
    part("opacity-said").textContent = `${Math.round(100 * state.opacity)} %`;
    part("count").textContent = `${shown} of ${data.effect.filter((effect) => effect !== null && effect !== 0).length} parts with an effect are shown.`;
    view.draw();
  }

  function controls() {
    const effect = part("effect");
    effect.addEventListener("input", () => {
      state.least = data.limit * (effect.value / 100) ** 2;
      effect.setAttribute("aria-valuetext", state.least === 0 ? "all effects" : `effects of at least ${digits(state.least)}`);
      changed();
    });
    const level = part("level");
    level.addEventListener("input", () => {
      state.level = levels[Number(level.value)];
      level.setAttribute("aria-valuetext", state.level === null ? "all" : `false discovery rate ${state.level}`);
      changed();
    });
    part("opacity").addEventListener("input", (event) => {
      state.opacity = event.target.value / 100;
      changed();
    });
    part("outlines").addEventListener("change", (event) => {
      state.outlines = event.target.checked;
      changed();
    });
    part("map")?.addEventListener("change", (event) => useMap(Number(event.target.value)));
  }

  // Outlines. The broken line of the reference lies on top of that of the prediction: where both are one, both are seen.
  const strokes = [
    [2, 1.2, []],
    [4, 1.2, [5, 5]],
    [1, 1.6, []],
  ];

  // Along the edges of pixels where a neighbor differs, in straight lines; `corner` says where on the screen a corner of a pixel lies. Beyond
  // the border of what is shown nothing is known: there is a line only where that is asked for.
  function border(width, height, inside, corner, closed) {
    const path = new Path2D();
    const line = (from, to) => {
      path.moveTo(...corner(...from));
      path.lineTo(...corner(...to));
    };
    const is = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside(x, y);
    const differ = (x, y, otherX, otherY, atBorder) => (!atBorder || closed) && is(x, y) !== is(otherX, otherY);
    for (let x = 0; x <= width; x++)
      for (let y = 0, from = -1; y <= height; y++) {
        const here = y < height && differ(x, y, x - 1, y, x === 0 || x === width);
        if (here && from < 0) from = y;
        if (!here && from >= 0) line([x, from], [x, y]);
        if (!here) from = -1;
      }
    for (let y = 0; y <= height; y++)
      for (let x = 0, from = -1; x <= width; x++) {
        const here = x < width && differ(x, y, x, y - 1, y === 0 || y === height);
        if (here && from < 0) from = x;
        if (!here && from >= 0) line([from, y], [x, y]);
        if (!here) from = -1;
      }
    return path;
  }
  function stroke(context, path, color, thick, dashes = []) {
    context.lineCap = dashes.length ? "butt" : "square";
    context.setLineDash(dashes.map((length) => length * thick));
    context.lineWidth = thick + 1.5;
    context.strokeStyle = "rgba(0, 0, 0, 0.75)";
    context.stroke(path);
    context.lineWidth = thick;
    context.strokeStyle = color;
    context.stroke(path);
    context.setLineDash([]);
  }

  // Pictures.

  function pictureView(canvas) {
    const [width, height] = data.shape;
    const scale = Math.max(1, Math.round(1100 / width));
    const stretch = data.edges[0] / data.edges[1];
    const tall = Math.max(1, Math.round(scale * stretch));
    canvas.width = width * scale;
    canvas.height = height * tall;
    canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
    canvas.style.maxWidth = `calc(75vh * ${canvas.width / canvas.height})`;
    const context = canvas.getContext("2d");
    const under = new OffscreenCanvas(width, height);
    const over = new OffscreenCanvas(width, height);
    const base = new OffscreenCanvas(canvas.width, canvas.height);
    const thick = Math.max(1.2, canvas.width / 700);
    let at = 0;

    const edge = (inside, closed) => border(width, height, (x, y) => inside(x + width * y), (x, y) => [x * scale, y * tall], closed);
    const paths = strokes.map(([bit, times, dashes]) => [outlineColors[bit], edge((i) => (outlines[i] & bit) > 0, bit === 1), times, dashes]);

    function mapChanged() {
      const pixels = new ImageData(width, height);
      for (let i = 0; i < count; i++) {
        for (let k = 0; k < 3; k++) pixels.data[4 * i + k] = data.channels === 3 ? image[3 * i + k] : image[i];
        pixels.data[4 * i + 3] = 255;
      }
      under.getContext("2d").putImageData(pixels, 0, 0);
    }

    function draw() {
      const colors = new Uint32Array(palette().buffer);
      const pixels = new ImageData(width, height);
      const found = new Uint32Array(pixels.data.buffer);
      for (let i = 0; i < count; i++) found[i] = colors[units[i]];
      over.getContext("2d").putImageData(pixels, 0, 0);
      const below = base.getContext("2d");
      below.imageSmoothingEnabled = false;
      below.drawImage(under, 0, 0, canvas.width, canvas.height);
      below.drawImage(over, 0, 0, canvas.width, canvas.height);
      if (state.outlines) for (const [color, path, times, dashes] of paths) stroke(below, path, `rgb(${color})`, thick * times, dashes);
      marked();
    }
    function marked() {
      context.drawImage(base, 0, 0);
      const number = state.chosen + 1;
      if (number > 0) stroke(context, edge((i) => units[i] === number, true), "#fff", thick * 2);
    }

    function goto(i) {
      at = i;
      choose(units[i] - 1);
      marked();
    }
    function pixelOf(event) {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * width);
      const y = Math.floor(((event.clientY - box.top) / box.height) * height);
      return x < 0 || y < 0 || x >= width || y >= height ? -1 : x + width * y;
    }
    const tip = part("tip");
    canvas.addEventListener("pointermove", (event) => {
      const i = pixelOf(event);
      if (i < 0) return;
      at = i;
      if (units[i] - 1 !== state.chosen) goto(i);
      tip.textContent = said(units[i] - 1);
      tip.hidden = false;
      const stage = tip.parentElement.getBoundingClientRect();
      const left = event.clientX - stage.left;
      tip.style.left = `${Math.max(0, Math.min(left + 14, stage.width - tip.offsetWidth))}px`;
      tip.style.top = `${event.clientY - stage.top + 18}px`;
    });
    canvas.addEventListener("pointerleave", () => (tip.hidden = true));
    // To the next part that way; out of the picture nothing happens.
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        choose(-1);
        tip.hidden = true;
        return marked();
      }
      const step = steps[event.key];
      if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      tip.hidden = true;
      let x = at % width;
      let y = (at - x) / width;
      for (;;) {
        x += step[0];
        y += step[1];
        if (x < 0 || y < 0 || x >= width || y >= height) return;
        const unit = units[x + width * y];
        if (unit > 0 && unit - 1 !== state.chosen) return goto(inside(unit, x, y, step));
      }
    });
    // The middle of a part, across the way that was gone: so one walks along rows and columns of parts.
    function inside(unit, x, y, [dx, dy]) {
      const [sx, sy] = dx ? [0, 1] : [1, 0];
      let near = 0;
      let far = 0;
      const is = (steps) => {
        const [nx, ny] = [x + sx * steps, y + sy * steps];
        return nx >= 0 && ny >= 0 && nx < width && ny < height && units[nx + width * ny] === unit;
      };
      while (is(near - 1)) near--;
      while (is(far + 1)) far++;
      const middle = Math.round((near + far) / 2);
      return x + sx * middle + width * (y + sy * middle);
    }
    canvas.addEventListener("focus", () => {
      if (state.chosen < 0 && canvas.matches(":focus-visible")) goto(strongest());
    });
    function strongest() {
      let best = -1;
      data.effect.forEach((effect, unit) => {
        if (effect !== null && isShown(unit) && (best < 0 || Math.abs(effect) > Math.abs(data.effect[best]))) best = unit;
      });
      return best < 0 ? Math.floor(count / 2) : middleOf(best);
    }
    function middleOf(unit) {
      let [sum, sumX, sumY] = [0, 0, 0];
      const held = [];
      for (let i = 0; i < count; i++)
        if (units[i] === unit + 1) {
          held.push(i);
          sum++;
          sumX += i % width;
          sumY += Math.floor(i / width);
        }
      const middle = Math.round(sumX / sum) + width * Math.round(sumY / sum);
      return units[middle] === unit + 1 ? middle : held[Math.floor(held.length / 2)];
    }
    return { mapChanged, draw, goto: (unit) => goto(middleOf(unit)) };
  }

  // Volumes.

  async function volumeView(canvas) {
    const packed = document.getElementById("niivue").textContent;
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpacked(packed));
    document.head.append(script);
    const { Niivue, NVImage } = globalThis.niivue;
    const [nx, ny, nz] = data.shape;
    const nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [1, 0.75, 0, 0.6],
      crosshairWidth: 0.4,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false,
      isNearestInterpolation: true,
      isOrientationTextVisible: data.oriented,
      isRadiologicalConvention: data.oriented,
      showAllOrientationMarkers: data.oriented,
      loadingText: "",
      logLevel: "silent",
      fontColor: [1, 0.75, 0, 1],
      isCornerOrientationText: true,
      multiplanarPadPixels: 6,
      multiplanarShowRender: 0,
      scrollRequiresFocus: true,
      viewModeHotKey: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
    });
    await nv.attachToCanvas(canvas);
    nv.setSliceType(nv.sliceTypeMultiplanar);
    const nifti = async (name, type, values, limits) => {
      const file = NVImage.createNiftiArray(data.shape, data.edges, data.affine, type, values);
      return NVImage.new(file.buffer, `${name}.nii`, "gray", 1, null, ...limits, true);
    };
    const over = await nifti("effects", 2304, new Uint8Array(4 * count), [0, 255]);
    let under = null;

    // Planes in a row, or on a narrow screen two above one, as high as they need to be.
    function laidOut() {
      const width = canvas.parentElement.clientWidth;
      const [x, y, z] = data.shape.map((length, axis) => length * data.edges[axis]);
      const row = width >= 640;
      const height = row ? (width * Math.max(y, z)) / (2 * x + y) : (width * (y + z)) / (x + y);
      canvas.parentElement.style.height = `${Math.round(Math.min(Math.max(height, 180), 0.8 * innerHeight))}px`;
      nv.opts.multiplanarLayout = row ? 3 : 2;
      nv.opts.crosshairWidth = row ? 0.4 : 0.9;
      nv.resizeListener();
    }

    // Lines lie on a sheet of their own above the slices, as fine as the screen.
    const sheet = part("sheet");
    const drawSlices = nv.drawScene.bind(nv);
    nv.drawScene = () => {
      const said = drawSlices();
      drawLines();
      return said;
    };
    function drawLines() {
      [sheet.width, sheet.height] = [canvas.width, canvas.height];
      const context = sheet.getContext("2d");
      const place = voxel();
      const thick = Math.max(1, canvas.width / 900);
      for (const slice of nv.screenSlices) {
        const [across, up, through] = { 0: [0, 1, 2], 1: [0, 2, 1], 2: [1, 2, 0] }[slice.axCorSag] || [];
        if (across === undefined) continue;
        let [left, top, width, height] = slice.leftTopWidthHeight;
        const [columns, rows] = [data.shape[across], data.shape[up]];
        const step = [1, nx, nx * ny];
        const at = (column, row) => column * step[across] + row * step[up] + place[through] * step[through];
        // Slices are mirrored by a negative width on the screen, or by a negative one in space.
        const mirrored = slice.fovMM[0] < 0 !== width < 0;
        if (width < 0) [left, width] = [left + width, -width];
        const corner = (column, row) => [left + width * (mirrored ? 1 - column / columns : column / columns), top + height * (1 - row / rows)];
        const edge = (inside) => border(columns, rows, (column, row) => inside(at(column, row)), corner, false);
        if (state.outlines) for (const [bit, times, dashes] of strokes) stroke(context, edge((i) => (outlines[i] & bit) > 0), `rgb(${outlineColors[bit]})`, thick * times, dashes);
        if (state.chosen >= 0) stroke(context, edge((i) => units[i] === state.chosen + 1), "#fff", thick * 1.5);
      }
    }

    async function mapChanged() {
      const next = await nifti("image", 2, image, [0, 255]);
      if (under) nv.removeVolume(under);
      under = next;
      nv.addVolume(under);
      nv.setVolume(under, 0);
      if (!nv.volumes.includes(over)) nv.addVolume(over);
      draw();
    }
    function draw() {
      if (!nv.volumes.includes(over)) return;
      const colors = new Uint32Array(palette().buffer);
      const pixels = new Uint8Array(over.img.buffer, over.img.byteOffset, 4 * count);
      const found = new Uint32Array(count);
      for (let i = 0; i < count; i++) found[i] = colors[units[i]];
      pixels.set(new Uint8Array(found.buffer));
      nv.updateGLVolume();
    }

    const planes = [0, 1, 2].map((axis) => part(`plane-${axis}`));
    const voxel = () => Array.from(nv.frac2vox(nv.scene.crosshairPos)).map((value, axis) => Math.max(0, Math.min(data.shape[axis] - 1, Math.round(value))));
    function located() {
      const place = voxel();
      planes.forEach((plane, axis) => {
        plane.value = place[axis];
        part(`plane-${axis}-said`).textContent = `${place[axis] + 1} of ${data.shape[axis]}`;
      });
      choose(units[place[0] + nx * (place[1] + ny * place[2])] - 1);
      nv.drawScene();
    }
    function goto(place) {
      nv.scene.crosshairPos = nv.vox2frac(place);
      located();
    }
    nv.onLocationChange = located;
    addEventListener("resize", laidOut);
    planes.forEach((plane, axis) =>
      plane.addEventListener("input", () => {
        const place = voxel();
        place[axis] = Number(plane.value);
        goto(place);
      })
    );
    const keys = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1], PageDown: [2, -1], PageUp: [2, 1] };
    canvas.addEventListener("keydown", (event) => {
      const key = keys[event.key];
      if (!key || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const place = voxel();
      const [axis, way] = key;
      // Radiological: the patient's right is on the left of the picture.
      place[axis] += axis === 0 && data.oriented ? -way : way;
      if (place[axis] >= 0 && place[axis] < data.shape[axis]) goto(place);
    });
    function middleOf(number, of) {
      const sums = [0, 0, 0, 0];
      let first = -1;
      for (let i = 0; i < count; i++)
        if (of(i) === number) {
          if (first < 0) first = i;
          sums[0] += i % nx;
          sums[1] += Math.floor(i / nx) % ny;
          sums[2] += Math.floor(i / (nx * ny));
          sums[3]++;
        }
      const middle = sums.slice(0, 3).map((sum) => Math.round(sum / sums[3]));
      return of(middle[0] + nx * (middle[1] + ny * middle[2])) === number
        ? middle
        : [first % nx, Math.floor(first / nx) % ny, Math.floor(first / (nx * ny))];
    }
    return {
      mapChanged,
      draw,
      goto: (unit) => goto(middleOf(unit + 1, (i) => units[i])),
      begin: () => {
        laidOut();
        goto(middleOf(1, (i) => outlines[i] & 1));
      },
    };
  }

  async function begin() {
    if (typeof DecompressionStream === "undefined") return "this browser is too old for it";
    if (volume && !document.createElement("canvas").getContext("webgl2")) return "this browser has no WebGL 2, which slices of volumes are drawn with";
    Object.assign(data, JSON.parse(new TextDecoder().decode(await unpacked(data.told))));
    maps = await Promise.all(data.units.map(numbers));
    images = await Promise.all(data.images.map(bytes));
    outlines = await bytes(data.outlines);
    [units, image] = [maps[0], images[0]];
    root.hidden = false;
    view = volume ? await volumeView(part("canvas")) : pictureView(part("canvas"));
    await view.mapChanged();
    controls();
    changed();
    view.begin?.();
    lead(view.goto);
    const plain = document.getElementById("plain");
    const button = document.getElementById("plain-shown");
    const toggled = () => {
      const closed = plain.classList.toggle("closed");
      button.setAttribute("aria-expanded", String(!closed));
      button.textContent = closed ? "Show the plain pictures" : "Hide the plain pictures";
    };
    button.hidden = false;
    button.addEventListener("click", toggled);
    toggled();
    return null;
  }
  begin()
    .catch((error) => error.message)
    .then((why) => {
      if (why !== null) {
        root.hidden = true;
        document.getElementById("viewer-missing").textContent = `The interactive view is not shown: ${why}. The pictures below say the same.`;
      }
      document.documentElement.dataset.viewer = why === null ? "shown" : "missing";
    });
})();
