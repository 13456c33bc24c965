// A text that the original and the regrouped model went on with, where `evaluate` kept one.

const sampleOf = (row) => row.run.samples.find(({ layout, merge }) => layout === row.layout && merge === row.merge);

/** Samples of the original, the selected row and the one that it is compared with: [{ title, prompt, text }]; none where
    neither of these has one. */
function samplesShown(row) {
  const shown = shownWith(row).filter((one) => one.method !== one.run.original && sampleOf(one));
  const originals = shown.map(({ run }) => state.rows.find((one) => one.run === run && one.method === run.original));
  const known = originals.filter((one, at, all) => one && all.indexOf(one) === at && sampleOf(one));
  return [
    ...known.map((one) => ({ title: one.run.name ? `original of ${one.run.name}` : "original", ...sampleOf(one) })),
    ...shown.map((one) => ({ title: titleBeside(one), ...sampleOf(one) })),
  ];
}

/** How many characters two texts have in common at their beginning. */
function common(a, b) {
  let at = 0;
  while (at < Math.min(a.length, b.length) && a[at] === b[at]) at += 1;
  return at;
}

function showSamples(row) {
  const samples = samplesShown(row);
  $("samples-section").hidden = !samples.length;
  $("samples").replaceChildren(...samples.map(({ title, prompt, text }) => {
    const like = samples[0].prompt === prompt ? common(text, samples[0].text) : 0;
    const figure = tagged("figure"), said = tagged("p", "", "sample");
    said.append(tagged("span", prompt, "quiet"), tagged("span", text.slice(0, like)), tagged("mark", text.slice(like)));
    figure.append(tagged("figcaption", title), said);
    return figure;
  }));
}
