// Browsers start no workers on pages that are opened from disk. There, the worker of the search runs
// in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inner = this.frame.contentWindow
      const load = (source) =>
        new Promise((done, failed) => {
          const script = inner.document.createElement("script")
          Object.assign(script, { src: source, onload: done, onerror: failed })
          inner.document.body.append(script)
        })
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inner.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
      this.ready = load(new URL(url, location.href).href)
    }

    postMessage(data) {
      const event = new MessageEvent("message", { data })
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(event))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
