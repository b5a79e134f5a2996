// Scatter plots of the feature spaces: choose backbone, projection and colour; the sample under the pointer is shown.
for (const figure of document.querySelectorAll(".scatter")) {
  const plot = JSON.parse(figure.querySelector("script").textContent);
  const [backbone, kind, factor] = figure.querySelectorAll("select");
  const [canvas, face] = figure.querySelectorAll("canvas");
  const hover = figure.querySelector(".hover");
  const count = plot.factors.label.of.length;
  const margin = 16, reach = 12;
  const sheet = plot.faces && Object.assign(new Image(), { src: plot.faces.address });
  // A fixed order that mixes the classes, so that none is drawn over another.
  const order = [...Array(count).keys()].sort((a, b) => ((a * 7919) % 10007) - ((b * 7919) % 10007));
  let dots = [];

  const fill = (select, names) => {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name)));
    if (names.includes(chosen)) select.value = chosen;
  };

  const draw = () => {
    fill(kind, Object.keys(plot.points[backbone.value]));
    const values = plot.points[backbone.value][kind.value];
    const { names, colours, of } = plot.factors[factor.value];
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const side = Math.min(width, height) - 2 * margin;
    const at = (value, length) => (length - side) / 2 + (value / 10000) * side;
    dots = Array.from({ length: count }, (_, i) => [at(values[2 * i], width), at(values[2 * i + 1], height)]);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.globalAlpha = 0.75;
    for (const i of order) {
      pen.fillStyle = colours[of[i]];
      pen.beginPath();
      pen.arc(...dots[i], count > 1500 ? 2.5 : 4, 0, 2 * Math.PI);
      pen.fill();
    }
    figure.querySelector(".legend").replaceChildren(...names.map((name, i) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.style.background = colours[i];
      item.append(swatch, name);
      return item;
    }));
  };

  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    let nearest = -1, best = reach;
    dots.forEach((dot, i) => {
      const distance = Math.hypot(dot[0] - x, dot[1] - y);
      if (distance < best) [nearest, best] = [i, distance];
    });
    hover.hidden = nearest < 0;
    if (hover.hidden) return;
    face.hidden = !sheet;
    if (sheet) {
      const { size, columns } = plot.faces;
      face.width = face.height = size;
      const column = nearest % columns, row = Math.floor(nearest / columns);
      face.getContext("2d").drawImage(sheet, column * size, row * size, size, size, 0, 0, size, size);
    }
    const words = ["label", "method", "dataset"].map((name) => plot.factors[name].names[plot.factors[name].of[nearest]]);
    hover.querySelector("p").textContent = [...words, `sample ${nearest}`].join(" · ");
    hover.style.left = `${Math.max(0, Math.min(x + 14, box.width - hover.offsetWidth))}px`;
    hover.style.top = `${y + 14 + hover.offsetHeight > box.height ? y - 14 - hover.offsetHeight : y + 14}px`;
  };

  fill(backbone, Object.keys(plot.points));
  fill(factor, Object.keys(plot.factors));
  figure.hidden = false;
  draw();
  for (const select of [backbone, kind, factor]) select.addEventListener("change", draw);
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => { hover.hidden = true; });
  addEventListener("resize", draw);
}
