{
  const data = JSON.parse(document.getElementById("turn-data").textContent);
  const sliders = ["rotation", "scale", "shift"].map((name) => document.getElementById(`turn-${name}`));
  const start = sliders.map((slider) => slider.value);
  const cards = [...document.querySelectorAll(".turned")];
  const sign = (number) => String(number).replace("-", "−");
  const words = [
    (i) => `${sign(data.rotations[i])}°`,
    (i) => `× ${data.scales[i].toFixed(1)}`,
    (i) => `${sign(Math.round(100 * data.shifts[i]))}% of width`,
  ];
  const confidence = (thousandths) => (thousandths >= 999 ? "> 99.9%" : `${(thousandths / 10).toFixed(1)}%`);

  // One picture of a sheet: a row for each rotation, in it the scales, and in them the shifts.
  const draw = (canvas, sheet, [rotation, scale, shift]) => {
    const [width, height] = sheet.size;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const column = scale * data.shifts.length + shift;
    canvas.getContext("2d").drawImage(
      sheet.image, column * width, rotation * height, width, height, 0, 0, width, height);
  };

  const show = () => {
    const at = sliders.map((slider) => Number(slider.value));
    const index = (at[0] * data.scales.length + at[1]) * data.shifts.length + at[2];
    sliders.forEach((slider, i) => {
      slider.nextElementSibling.textContent = words[i](at[i]);
      slider.setAttribute("aria-valuetext", words[i](at[i]));
    });
    cards.forEach((card, i) => {
      const one = data.cards[i];
      draw(card.querySelector(".before"), one.before, at);
      if (one.after) {
        draw(card.querySelector(".after"), one.after, at);
        const points = one.outlines[index].map((tenths) => tenths / 10);
        card.querySelectorAll("polygon").forEach((line) => line.setAttribute("points", points.join(" ")));
        card.querySelector(".corner").setAttribute("d", `M${points[0]} ${points[1]}h0`);
      }
      const [[classes, sure], control] = one.said;
      const right = classes[index] === one.truth;
      const said = card.querySelector(".said strong");
      said.textContent = data.names[classes[index]] + (right ? "" : `, but is ${data.names[one.truth]}`);
      said.className = right ? "" : "bad";
      card.querySelector(".said span").textContent = confidence(sure[index]);
      if (control) {
        const wrong = control[0][index] === one.truth ? "" : ", wrong";
        card.querySelector(".other").textContent =
          `control: ${data.names[control[0][index]]}${wrong}, ${confidence(control[1][index])}`;
      }
    });
  };

  const read = async (sheet) => {
    sheet.image = new Image();
    sheet.image.src = sheet.uri;
    await sheet.image.decode();
  };
  Promise.all(data.cards.flatMap((one) => [one.before, one.after]).filter(Boolean).map(read)).then(() => {
    sliders.forEach((slider) => slider.addEventListener("input", show));
    document.getElementById("turn-back").addEventListener("click", () => {
      sliders.forEach((slider, i) => { slider.value = start[i]; });
      show();
    });
    show();
    document.getElementById("turn").dataset.ready = "";
  });
}
