// Returns a selector for each of `elements`. Null for parts of a control of the browser, options of a `select`, what is in
// a closed shadow root, and where the selector would be too long.
//
// Each selects one element of its document or shadow root. It is made of what authors choose and seldom change:
// attributes for tests, ids, names, labels, targets. Only where there is none of these it is a path from the next
// ancestor that has one. Inside shadow roots it is a chain, ` >> ` between the host and what is in its root.
(...elements) => {
  const TEST_ATTRIBUTES = ["data-testid", "data-test-id", "data-test", "data-qa", "data-cy"];
  const OTHER_ATTRIBUTES = ["name", "aria-label", "href", "placeholder", "title", "role", "type", "for", "value"];
  // Of these a page has one for long; other elements without attributes are counted from their parent on.
  const LANDMARK = /^(?:body|dialog|footer|form|header|main|nav|search)$|-/;
  const MAX_VALUE = 200;
  const MAX_SELECTOR = 1000;
  // Such as `:r1:`, `radix-12`, `input-48213`, `a3f09c2b`: another visit finds other ones.
  const GENERATED = /\d{3,}|[0-9a-f]{8,}|^:|:$|^(?:radix|react|headlessui|mui|ember|yui)\W?/i;

  const quoted = (value) => `"${value.replace(/["\\]/g, "\\$&").replace(/[\n\r\f]/g, (c) => `\\${c.charCodeAt(0).toString(16)} `)}"`;
  const selectsOnly = (selector, element) => {
    const found = element.getRootNode().querySelectorAll(selector);
    return found.length === 1 && found[0] === element;
  };
  const valueOf = (element, name) => {
    const value = element.getAttribute(name);
    return value && value.length <= MAX_VALUE ? value : null;
  };

  function* candidates(element) {
    for (const name of TEST_ATTRIBUTES) {
      const value = valueOf(element, name);
      if (value !== null) yield `[${name}=${quoted(value)}]`;
    }
    const id = valueOf(element, "id");
    if (id !== null && !GENERATED.test(id)) yield `#${CSS.escape(id)}`;
    const tag = CSS.escape(element.localName);
    let all = "";
    for (const name of OTHER_ATTRIBUTES) {
      const value = valueOf(element, name);
      if (value === null) continue;
      yield `${tag}[${name}=${quoted(value)}]`;
      all += `[${name}=${quoted(value)}]`;
    }
    if (all || LANDMARK.test(element.localName)) yield tag + all;
  }

  const step = (element) => {
    const tag = CSS.escape(element.localName);
    const same = [...element.parentNode.children].filter((one) => one.localName === element.localName);
    return same.length === 1 ? tag : `${tag}:nth-of-type(${same.indexOf(element) + 1})`;
  };

  const within = (element) => {
    const steps = [];
    for (let at = element; at instanceof Element; at = at.parentNode) {
      for (const candidate of candidates(at)) {
        if (selectsOnly(candidate, at)) return [candidate, ...steps].join(" > ");
      }
      steps.unshift(step(at));
    }
    return steps.join(" > ");
  };

  const selector = (element) => {
    const root = element.getRootNode();
    if (root === document) return within(element);
    if (!(root instanceof ShadowRoot) || root.host.shadowRoot !== root) return null;
    const host = selector(root.host);
    return host && `${host} >> ${within(element)}`;
  };

  return elements.map((element) => {
    const found = element && !(element instanceof HTMLOptionElement) ? selector(element) : null;
    return found && found.length <= MAX_SELECTOR ? found : null;
  });
}
