// Plays every replay of the page; each token carries the call that wrote it, so the page itself is the data.
(() => {
  const start = (box) => {
    const find = (name) => box.querySelector(name);
    const [controls, play, slider, said] = [".controls", ".play", "input", "output"].map(find);
    const tokens = [...box.querySelectorAll(".t")];
    const steps = find(".text").dataset.steps.split(" ");
    const last = steps.length;
    const pause = Math.min(600, Math.max(50, 9000 / last));  // milliseconds a call; nine seconds in all, if it can
    let timer = 0;

    const show = (frame, mark = true) => {
      let written = 0;
      for (const token of tokens) {
        const at = Number(token.dataset.at);
        const blank = at > frame;
        written += !blank;
        token.classList.toggle("blank", blank);
        token.classList.toggle("now", mark && at === frame);
        token.ariaHidden = blank ? "true" : null;
      }
      slider.value = frame;
      const call = frame ? `call ${frame} of ${last} (step ${steps[frame - 1]})` : `before the first of ${last} calls`;
      slider.setAttribute("aria-valuetext", call);
      said.textContent = `${call}: ${written} of ${tokens.length} tokens written`;
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
