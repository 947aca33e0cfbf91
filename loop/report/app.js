// Plays all clips of a group in step. Without this file the clips stand on their first frame.
(() => {
  "use strict";
  const RATES = [1, 0.5, 0.25];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  for (const video of document.querySelectorAll("video")) {
    const mark = () => video.classList.toggle("tiny", video.videoWidth < 200);
    video.readyState ? mark() : video.addEventListener("loadedmetadata", mark);
  }

  function group(root, videos, controls) {
    const find = (name) => (controls ? controls.querySelector(name) : null);
    const [button, scrub, speed] = [find(".play"), find(".scrub"), find(".speed")];
    let playing = !still, visible = false, rate = 0, dragging = false;
    const leader = () => videos.find((v) => v.duration > 0) || videos[0];
    const running = () => playing && visible && !dragging;

    const apply = () => {
      for (const v of videos) {
        v.playbackRate = RATES[rate];
        running() ? v.play().catch(() => {}) : v.pause();
      }
      if (button) {
        button.textContent = playing ? "Pause" : "Play";
        button.setAttribute("aria-pressed", String(playing));
      }
    };
    const seek = (time) => videos.forEach((v) => { if (v.duration > 0) v.currentTime = Math.min(time, v.duration); });

    // nobody starts again before everybody has ended: that keeps a loop in step
    const ended = () => {
      if (running() && videos.every((v) => v.ended || v.error || !(v.duration > 0))) { seek(0); apply(); }
    };
    videos.forEach((v) => v.addEventListener("ended", ended));

    const tick = () => {
      const first = leader();
      if (running()) {
        const time = first.currentTime;
        for (const v of videos)
          if (v !== first && !v.ended && !first.ended && Math.abs(v.currentTime - time) > 0.15) v.currentTime = time;
        if (scrub && first.duration > 0) scrub.value = String((1000 * time) / first.duration);
      }
      if (visible) requestAnimationFrame(tick);
    };
    new IntersectionObserver((entries) => {
      const was = visible;
      visible = entries.some((e) => e.isIntersecting);
      apply();
      if (visible && !was) requestAnimationFrame(tick);
    }, { rootMargin: "100px" }).observe(root);

    if (!controls) return;
    controls.hidden = false;
    button.addEventListener("click", () => { playing = !playing; apply(); ended(); });
    speed.addEventListener("click", () => {
      rate = (rate + 1) % RATES.length;
      speed.textContent = ["1×", "½×", "¼×"][rate];
      apply();
    });
    scrub.addEventListener("input", () => {
      dragging = true;
      apply();
      seek((scrub.value / 1000) * (leader().duration || 0));
    });
    scrub.addEventListener("change", () => { dragging = false; apply(); ended(); });
  }

  const videosOf = (root) => [...root.querySelectorAll("video")];
  for (const grid of document.querySelectorAll(".watch"))
    if (videosOf(grid).length) group(grid, videosOf(grid), grid.parentElement.querySelector(".controls"));
  for (const duel of document.querySelectorAll(".duel")) if (videosOf(duel).length) group(duel, videosOf(duel), null);
})();
