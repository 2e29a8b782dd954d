// A function for make.py: return what Chromium shows of the page, down to the section `last`.
// Every box and every line of text is where Chromium's layout has put it.
(last) => {
  const shapes = [];
  const canvas = document.createElement("canvas").getContext("2d");
  const isVisible = (colour) => !/^rgba\(.*, 0\)$/.test(colour);
  const place = ({ x, y, width, height }) => ({ x, y, width, height });

  function addBox(element, style) {
    const at = place(element.getBoundingClientRect());
    const stroke = parseFloat(style.borderTopWidth) ? style.borderTopColor : null;
    const fill = isVisible(style.backgroundColor) ? style.backgroundColor : null;
    if (element.localName === "meter") {
      const { value, max } = element;
      const full = element.hasAttribute("high") && value > element.high;
      shapes.push({ kind: "meter", ...at, share: max ? Math.min(1, value / max) : 0, full });
    } else if (element.matches("th, td")) { // of whose borders only the upper one shows
      if (stroke) shapes.push({ kind: "line", ...at, fill: stroke });
    } else if (fill || stroke) {
      const half = Math.min(at.width, at.height) / 2;
      const radius = Math.min(half, parseFloat(style.borderTopLeftRadius) || 0);
      shapes.push({ kind: "box", ...at, radius, fill, stroke });
    }
  }

  // Return a text in pieces of one line each.
  function linesOf(node) {
    const range = document.createRange();
    const lines = [];
    for (let at = 0; at < node.length; at++) {
      range.setStart(node, at);
      range.setEnd(node, at + 1);
      const [letter] = range.getClientRects();
      if (!letter) continue; // white space that is not shown
      const line = lines.at(-1);
      if (line && Math.abs(line.top - letter.top) < 1) {
        line.text += node.data[at];
        line.right = letter.right;
      } else {
        lines.push({ text: node.data[at], left: letter.left, right: letter.right, top: letter.top });
      }
    }
    return lines.filter((line) => line.text.trim());
  }

  function addText(node, style) {
    canvas.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    const ascent = canvas.measureText("x").fontBoundingBoxAscent;
    // In a reader's font of another width, text stays at its side, or in the middle, of its box.
    const anchor = isVisible(style.backgroundColor)
      ? "middle"
      : style.textAlign === "right" ? "end" : "start";
    for (const { text, left, right, top } of linesOf(node)) {
      shapes.push({
        kind: "text",
        text: text.replace(/\s+/g, " ").trim(),
        x: { start: left, middle: (left + right) / 2, end: right }[anchor],
        y: top + ascent,
        anchor,
        size: parseFloat(style.fontSize),
        weight: style.fontWeight,
        fill: style.color,
      });
    }
  }

  const main = document.querySelector("main");
  const headings = [...main.querySelectorAll("section > h2")];
  const end = headings.find((heading) => heading.textContent === last).parentElement;
  const height = end.getBoundingClientRect().bottom;
  const nodes = document.createTreeWalker(main, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  for (let node; (node = nodes.nextNode()); ) {
    const isText = node.nodeType === Node.TEXT_NODE;
    const element = isText ? node.parentElement : node;
    if (element.getBoundingClientRect().top > height) break;
    (isText ? addText : addBox)(node, getComputedStyle(element));
  }
  // The page's own names for its colours, and what each of them is now.
  const root = getComputedStyle(document.documentElement);
  const names = ["ground", "card", "ink", "dim", "line", "good", "wait", "bad"];
  const colours = names.map((name) => [name, root.getPropertyValue(`--${name}`).trim()]);
  return { shapes, palette: Object.fromEntries(colours), height };
}
