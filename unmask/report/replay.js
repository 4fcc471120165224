// Plays every replay of the page; each token carries the call that wrote it, and what it held before, so the page itself
// is the data.
(() => {
  const start = (box) => {
    const find = (name) => box.querySelector(name);
    const [controls, play, slider, said] = [".controls", ".play", "input", "output"].map(find);
    const tokens = [...box.querySelectorAll(".t")].map((token) => {
      const now = [Number(token.dataset.at), token.textContent, token.title];
      const colours = ["--b", "--f", "--c"].map((name) => token.style.getPropertyValue(name));
      const past = JSON.parse(token.dataset.past || "[]");
      return { token, states: [...past, [...now, ...colours]] };  // [call, text or null, title, colour, ink, certainty]
    });
    const steps = find(".text").dataset.steps.split(" ");
    const last = steps.length;
    const pause = Math.min(600, Math.max(50, 9000 / last));  // milliseconds a call; nine seconds in all, if it can
    let timer = 0;

    const show = (frame, mark = true) => {
      let written = 0;
      let fresh = 0;
      let erased = 0;
      for (const { token, states } of tokens) {
        const i = states.findLastIndex(([at]) => at <= frame);
        const blank = i < 0 || states[i][1] === null;
        const [at, text, title, ...look] = blank ? (states[i - 1] ?? states[0]) : states[i];
        const now = i >= 0 && states[i][0] === frame;
        written += !blank;
        fresh += now && !blank;
        erased += now && blank;
        if (states.length > 1 && token.textContent !== text) {
          token.textContent = text;
          token.classList.toggle("nl", text.includes("\n"));
          token.classList.toggle("nil", !text);
        }
        if (states.length > 1) {
          token.title = title;
          look.forEach((value, k) => token.style.setProperty(["--b", "--f", "--c"][k], value));
        }
        token.classList.toggle("blank", blank);
        token.classList.toggle("now", mark && now && !blank);
        token.classList.toggle("gone", mark && now && blank);
        token.classList.toggle("re", states.length > 1 && (!mark || i > 0));
        token.ariaHidden = blank ? "true" : null;
      }
      slider.value = frame;
      const call = frame ? `call ${frame} of ${last} (step ${steps[frame - 1]})` : `before the first of ${last} calls`;
      slider.setAttribute("aria-valuetext", call);
      const changed = erased ? `, ${fresh} now, ${erased} erased` : "";
      said.textContent = `${call}: ${written} of ${tokens.length} tokens written${changed}`;
    };
    const stop = () => {
      clearTimeout(timer);
      timer = 0;
      play.textContent = "Play";
      said.setAttribute("aria-live", "polite");
    };
    const move = (frame) => {
      stop();
      show(Math.min(last, Math.max(0, frame)));
    };
    const tick = () => {
      const frame = Number(slider.value) + 1;
      show(frame);
      if (frame < last) timer = setTimeout(tick, pause);
      else stop();
    };
    const toggle = () => {
      if (timer) return stop();
      play.textContent = "Pause";
      said.setAttribute("aria-live", "off");  // a reader would talk without end
      if (Number(slider.value) >= last) show(0);
      timer = setTimeout(tick, pause);
    };

    play.addEventListener("click", toggle);
    find(".back").addEventListener("click", () => move(Number(slider.value) - 1));
    find(".forward").addEventListener("click", () => move(Number(slider.value) + 1));
    slider.addEventListener("input", () => move(Number(slider.value)));
    slider.addEventListener("keydown", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
    find(".text").addEventListener("click", (event) => {  // a finger has no hover: tell the token's title
      const token = event.target.closest(".t:not(.blank)");
      if (token) said.textContent = `“${token.textContent}”: ${token.title}`;
    });
    const all = () => {
      stop();
      show(last, false);
    };
    addEventListener("beforeprint", all);
    all();
    controls.hidden = false;
  };
  for (const box of document.querySelectorAll(".replay:not([data-ready])")) {
    box.dataset.ready = "";
    if (box.querySelector(".controls")) start(box);
  }
})();
