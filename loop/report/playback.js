// Plays all clips of a group in step, and finds a clip by its name. The other files of the script build on it.
// Without the script the clips can be played one by one.
"use strict";
const report = (() => {
  const RATES = [1, 0.5, 0.25];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const names = new Map(); // clip → the video that carries it
  for (const video of document.querySelectorAll("video[src]")) names.set(video.dataset.clip, video.src);

  function source(name) {
    if (!names.has(name)) {
      const block = document.getElementById(`clip-${name}`);
      names.set(name, block ? `data:video/mp4;base64,${block.textContent}` : "");
    }
    return names.get(name);
  }

  // small clips keep their pixels; nobody needs buttons on every clip once they play together
  function prepare(video) {
    const mark = () => video.classList.toggle("tiny", video.videoWidth < 200);
    video.removeAttribute("controls");
    video.addEventListener("loadedmetadata", mark);
    if (video.readyState) mark();
    if (!video.src && video.dataset.clip) video.src = source(video.dataset.clip);
  }

  function group(root, videos, controls, fps) {
    const find = (name) => (controls ? controls.querySelector(name) : null);
    const [button, scrub, speed] = [find(".play"), find(".scrub"), find(".speed")];
    const drift = videos.length > 2 ? 0.15 : 0.06; // seconds that are let be
    let playing = !still, visible = false, rate = 0, dragging = false, moved = 0;
    const leader = () => videos.find((v) => v.duration > 0) || videos[0];
    const running = () => playing && visible && !dragging;
    videos.forEach(prepare);

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
    const place = () => {
      const first = leader();
      if (scrub && first.duration > 0) scrub.value = String((1000 * first.currentTime) / first.duration);
    };

    // nobody starts again before everybody has ended: that keeps a loop in step
    const ended = () => {
      if (running() && videos.every((v) => v.ended || v.error || !(v.duration > 0))) { seek(0); apply(); }
    };
    videos.forEach((v) => v.addEventListener("ended", ended));
    videos.forEach((v) => v.addEventListener("loadeddata", () => running() && v.play().catch(() => {})));

    const tick = () => {
      const first = leader();
      if (running()) {
        const time = first.currentTime, now = performance.now();
        const late = videos.filter((v) => v !== first && !v.ended && !first.ended && Math.abs(v.currentTime - time) > drift);
        if (late.length && now - moved > 500) { // a machine that cannot keep up must not seek all the time
          moved = now;
          for (const v of late) v.currentTime = time;
        }
        place();
      }
      if (visible) requestAnimationFrame(tick);
    };
    new IntersectionObserver((entries) => {
      const was = visible;
      visible = entries[entries.length - 1].isIntersecting;
      if (visible) videos.forEach((v) => (v.preload = "auto"));
      apply();
      if (visible && !was) requestAnimationFrame(tick);
    }, { rootMargin: "200px" }).observe(root);

    const step = (frames) => {
      playing = false;
      apply();
      seek(Math.max(0, leader().currentTime + frames / fps));
      place();
    };
    const restart = () => { seek(0); apply(); };
    if (!controls) return restart;
    controls.hidden = false;
    button.addEventListener("click", () => { playing = !playing; apply(); ended(); });
    speed.addEventListener("click", () => {
      rate = (rate + 1) % RATES.length;
      speed.textContent = ["1×", "½×", "¼×"][rate];
      apply();
    });
    find(".back")?.addEventListener("click", () => step(-1));
    find(".forward")?.addEventListener("click", () => step(1));
    scrub.addEventListener("input", () => {
      dragging = true;
      apply();
      seek((scrub.value / 1000) * (leader().duration || 0));
    });
    scrub.addEventListener("change", () => { dragging = false; apply(); ended(); });
    return restart;
  }

  const videosOf = (root) => [...root.querySelectorAll("video")];
  for (const grid of document.querySelectorAll(".watch"))
    if (videosOf(grid).length) group(grid, videosOf(grid), grid.parentElement.querySelector(".toolbar .controls"));

  const data = (name) => {
    const block = document.getElementById(name);
    return block ? JSON.parse(block.textContent) : null;
  };
  return { group, source, videosOf, data };
})();
