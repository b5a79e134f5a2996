// Scatter plots of the feature spaces: choose backbone, projection and colour; the sample under the pointer is shown,
// and the others of its group are ringed. A backbone's name in the table of results shows its plot.
for (const figure of document.querySelectorAll(".scatter")) {
  const plot = JSON.parse(figure.querySelector("script").textContent);
  const [backbone, kind, factor] = figure.querySelectorAll("select");
  const [canvas, face] = figure.querySelectorAll("canvas");
  const hover = figure.querySelector(".hover");
  const count = plot.factors.label.of.length;
  const margin = 16, reach = 12;
  const GROUP = "group", SCORE = "fake probability, fine-tuned";
  const sheet = plot.faces && Object.assign(new Image(), { src: plot.faces.address });
  // A fixed order that mixes the classes, so that none is drawn over another.
  const order = [...Array(count).keys()].sort((a, b) => ((a * 7919) % 10007) - ((b * 7919) % 10007));
  let dots = [], nearest = -1;

  const fill = (select, names) => {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name)));
    if (names.includes(chosen)) select.value = chosen;
  };

  // Colour of each sample, and the legend: pairs of a colour, or none, and words.
  const colouring = () => {
    if (factor.value === GROUP) {
      const { of, colours } = plot.groups;
      const words = `${new Set(of).size} groups, colours repeat; point at a dot to ring the others of its group`;
      return [(i) => colours[of[i] % colours.length], [[null, words]]];
    }
    if (factor.value === SCORE) {
      const scores = plot.scores[backbone.value], { shades } = plot, last = shades.length - 1;
      const shade = (percent) => shades[Math.round((percent / 100) * last)];
      return [(i) => shade(scores[i]), [0, 25, 50, 75, 100].map((percent) => [shade(percent), `${percent} %`])];
    }
    const { names, colours, of } = plot.factors[factor.value];
    return [(i) => colours[of[i]], names.map((name, i) => [colours[i], name])];
  };

  const draw = () => {
    fill(kind, Object.keys(plot.points[backbone.value]));
    const more = [[GROUP, plot.groups], [SCORE, plot.scores[backbone.value]]].filter(([, there]) => there);
    fill(factor, [...Object.keys(plot.factors), ...more.map(([name]) => name)]);
    const values = plot.points[backbone.value][kind.value];
    const [colour, legend] = colouring();
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const side = Math.min(width, height) - 2 * margin;
    const at = (value, length) => (length - side) / 2 + (value / 10000) * side;
    dots = Array.from({ length: count }, (_, i) => [at(values[2 * i], width), at(values[2 * i + 1], height)]);
    const pen = canvas.getContext("2d");
    const radius = count > 1500 ? 2.5 : 4;
    const circle = (i, size) => {
      pen.beginPath();
      pen.arc(...dots[i], size, 0, 2 * Math.PI);
    };
    pen.scale(ratio, ratio);
    pen.globalAlpha = 0.75;
    for (const i of order) {
      pen.fillStyle = colour(i);
      circle(i, radius);
      pen.fill();
    }
    pen.globalAlpha = 1;
    pen.lineWidth = 1.5;
    const ringed = (i) => i === nearest || (plot.groups && plot.groups.of[i] === plot.groups.of[nearest]);
    for (const i of nearest < 0 ? [] : order.filter(ringed)) {
      circle(i, radius + 3);
      pen.stroke();
    }
    figure.querySelector(".legend").replaceChildren(...legend.map(([colour, words]) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.style.background = colour;
      item.append(...(colour ? [swatch] : []), words);
      return item;
    }));
  };

  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    let found = -1, best = reach;
    dots.forEach((dot, i) => {
      const distance = Math.hypot(dot[0] - x, dot[1] - y);
      if (distance < best) [found, best] = [i, distance];
    });
    show(found);
    hover.style.left = `${Math.max(0, Math.min(x + 14, box.width - hover.offsetWidth))}px`;
    hover.style.top = `${y + 14 + hover.offsetHeight > box.height ? y - 14 - hover.offsetHeight : y + 14}px`;
  };

  const show = (sample) => {
    if (sample === nearest) return;
    nearest = sample;
    draw();
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
    if (plot.scores[backbone.value]) words.push(`fake ${plot.scores[backbone.value][nearest]} %`);
    hover.querySelector("p").textContent = [...words, `sample ${nearest}`].join(" · ");
  };

  fill(backbone, Object.keys(plot.points));
  figure.hidden = false;
  draw();
  for (const select of [backbone, kind, factor]) select.addEventListener("change", draw);
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => show(-1));
  addEventListener("resize", draw);
  for (const head of document.querySelectorAll("#results tbody th")) {
    const name = head.dataset.sort;
    if (!Object.hasOwn(plot.points, name)) continue;
    const link = head.querySelector("a") ?? document.createElement("a");
    Object.assign(link, { href: "#pictures", title: "Show its feature space" });
    if (!link.isConnected) {
      link.append(...head.childNodes);
      head.append(link);
    }
    link.addEventListener("click", () => {
      backbone.value = name;
      draw();
    });
  }
}
