// A page read from disk may not start a worker; search then runs in a hidden frame instead.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe"), waiting = [];
    frame.hidden = true;
    document.body.append(frame);
    this.postMessage = data => { waiting.push(data); };
    frame.contentWindow.postMessage = data => {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    };
    const script = frame.contentDocument.createElement("script");
    script.src = new URL(url, location.href);
    script.onload = () => {
      this.postMessage = data => frame.contentWindow.dispatchEvent(new frame.contentWindow.MessageEvent("message", { data }));
      waiting.splice(0).forEach(data => this.postMessage(data));
    };
    frame.contentDocument.body.append(script);
    this.terminate = () => frame.remove();
  }
};
