// A slider moves through the steps of an interpolation; the picture leads to the same step in the viewer.
for (const slider of document.querySelectorAll(".slider")) {
  const [input, film, output, link] = ["input", ".film", "output", "a.work"].map((part) => slider.querySelector(part));
  const show = () => {
    film.style.setProperty("--at", input.value);
    output.textContent = input.value;
    link.href = `${slider.dataset.page}#object-${Number(input.value) + 1}`;
  };
  input.addEventListener("input", show);
  show();
}
