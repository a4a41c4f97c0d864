// Building elements. Texts are set as text and nowhere read as markup.

/**
 * An element.
 * @param {string} tag name, perhaps with classes: "p.note.small".
 * @param {Object} props attributes; `on` holds listeners, `vars` custom properties of the style,
 *   and true or false stand for an attribute that is there or not.
 * @param {...(Node|string|null|undefined|Array)} children null and undefined are left out.
 */
export function el(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  set(node, props);
  add(node, children);
  return node;
}

function set(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "vars") {
      for (const [key, text] of Object.entries(value)) node.style.setProperty(`--${key}`, text);
    } else if (name === "value" || name === "checked" || name === "muted") {
      node[name] = value;
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
}

function add(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
}

export function fill(node, ...children) {
  node.replaceChildren();
  add(node, children);
  return node;
}

let last = 0;

/** A name that no other element of the page has, for labels and descriptions. */
export function fresh(stem) {
  last += 1;
  return `${stem}-${last}`;
}

/** Say something to whoever hears the page. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}
