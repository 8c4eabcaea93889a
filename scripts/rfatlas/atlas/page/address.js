// The address of the page: which channel's passport is open, and how the grid and the plot are set.
// `index.html#conv1/3?sort=osi&desc=1` can be kept and shared.
"use strict";

rfatlas.address = (() => {
  let channel = "";
  let settings = "";

  const decoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      // What is no text names nothing.
      return "";
    }
  };

  // A channel's name in an address; names of layers may hold ? and #.
  const encoded = (name) => encodeURIComponent(name).replaceAll("%2F", "/");

  function parse() {
    const [name, ...rest] = location.hash.slice(1).split("?");
    return [decoded(name), rest.join("?")];
  }

  function hash() {
    const whole = encoded(channel) + (settings ? `?${settings}` : "");
    return whole ? `#${whole}` : "";
  }

  const url = () => location.pathname + location.search + hash();

  // Keep the settings in the address, without a step of its own in the history.
  function keep(given) {
    const text = new URLSearchParams(given.filter(([, value]) => value !== null)).toString();
    if (text === settings) return;
    settings = text;
    history.replaceState(null, "", url());
  }

  // Go to the passport of a channel, or with "" to none.
  function visit(name) {
    if (name === channel) return;
    channel = name;
    history.pushState(null, "", url());
    rfatlas.passport.follow(channel);
  }

  // Do as the address says, now and whenever it changes; `restore` takes the settings.
  function setup(restore) {
    const follow = async (event) => {
      const [name, text] = parse();
      channel = name;
      if (!event || text !== settings) {
        settings = text;
        await restore(new URLSearchParams(text));
      }
      rfatlas.passport.follow(channel);
    };
    addEventListener("popstate", follow);
    return follow();
  }

  return { encoded, keep, visit, setup, get channel() { return channel; } };
})();
