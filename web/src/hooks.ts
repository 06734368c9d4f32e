/** Hooks for what is outside the page: the service, and the document's events. */
import { useCallback, useEffect, useState, useSyncExternalStore, type RefObject } from "react";
import type { Size } from "./boxes";
import * as service from "./service";
import { ServiceError, type Failure, type Metadata, type Model } from "./service";

const LOOK_AGAIN_S = 2; // for a service that does not answer, or has no model ready yet

/** What the service serves; `outage` while it doesn't answer. Asks again until it does. */
export function useService() {
  const [models, setModels] = useState<Model[] | null>(null); // null: not known yet
  const [metadata, setMetadata] = useState<Metadata | null>(null);
  const [outage, setOutage] = useState<Failure | null>(null);

  const look = useCallback(async () => {
    try {
      const [found, about] = await Promise.all([service.models(), service.metadata()]);
      setModels(found);
      setMetadata(about);
      setOutage(null);
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      setOutage(error.failure);
    }
  }, []);

  useEffect(() => void look(), [look]);
  const isWaiting = outage ? outage.retryAfterS !== null : models?.length === 0;
  useEffect(() => {
    if (!isWaiting) return;
    const timer = setInterval(look, LOOK_AGAIN_S * 1000);
    return () => clearInterval(timer);
  }, [isWaiting, look]);

  return { models, metadata, outage, look };
}

const ADDRESS = /^https?:\/\/\S+$/i;

/** Files that are pasted or dropped anywhere, and addresses that are pasted or dropped instead of them. */
export function useFiles(onFile: (file: File) => void, onAddress: (address: string) => void) {
  useEffect(() => {
    const root = document.documentElement;
    const taken = (event: Event, data: DataTransfer | null) => {
      const file = data?.files[0];
      const address = (data?.getData("text/uri-list") || data?.getData("text/plain") || "").trim();
      if (!file && !ADDRESS.test(address)) return;
      event.preventDefault();
      if (file) onFile(file);
      else onAddress(address);
    };
    return listening({
      paste: (event) => taken(event, event.clipboardData),
      drop: (event) => {
        delete root.dataset.dropping;
        taken(event, event.dataTransfer);
      },
      dragover: (event) => {
        event.preventDefault(); // or the browser would leave the page for the file
        root.dataset.dropping = "";
      },
      dragleave: (event) => {
        if (!event.relatedTarget) delete root.dataset.dropping;
      },
    });
  }, [onFile, onAddress]);
}

/** The element's size in pixels of the screen; 0 until it is known. */
export function useSize(element: RefObject<HTMLElement | null>): Size {
  const [size, setSize] = useState<Size>({ width: 0, height: 0 });
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => {
      const { width, height } = entry!.contentRect;
      setSize({ width, height });
    });
    observer.observe(element.current!);
    return () => observer.disconnect();
  }, [element]);
  return size;
}

export function useMedia(query: string): boolean {
  const media = window.matchMedia(query);
  const subscribe = (onChange: () => void) => {
    media.addEventListener("change", onChange);
    return () => media.removeEventListener("change", onChange);
  };
  return useSyncExternalStore(subscribe, () => media.matches);
}

export function useEscape(onEscape: () => void) {
  useEffect(() => listening({ keydown: (event) => event.key === "Escape" && onEscape() }), [onEscape]);
}

type Listeners = { [Name in keyof DocumentEventMap]?: (event: DocumentEventMap[Name]) => void };

/** Adds listeners to the document; call the value to remove them. */
function listening(listeners: Listeners): () => void {
  const entries = Object.entries(listeners) as [string, EventListener][];
  for (const [name, listener] of entries) document.addEventListener(name, listener);
  return () => {
    for (const [name, listener] of entries) document.removeEventListener(name, listener);
  };
}
