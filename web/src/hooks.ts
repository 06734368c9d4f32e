/** The page's ties to what is outside it: the service, the document's events. */
import { useCallback, useEffect, useState } from "react";
import * as service from "./service";
import { ServiceError, type Failure, type Metadata, type Model } from "./service";

const LOOK_AGAIN_S = 2; // for a service that does not answer, or has no model ready yet

/** What the service serves, `outage` while it does not say; looked for again until it does. */
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

/** Files that are pasted or dropped anywhere. */
export function useFiles(onFile: (file: File) => void) {
  useEffect(() => {
    const root = document.documentElement;
    const taken = (event: Event, files: FileList | undefined) => {
      if (!files?.[0]) return;
      event.preventDefault();
      onFile(files[0]);
    };
    return listening({
      paste: (event) => taken(event, event.clipboardData?.files),
      drop: (event) => {
        delete root.dataset.dropping;
        taken(event, event.dataTransfer?.files);
      },
      dragover: (event) => {
        event.preventDefault(); // or the browser would leave the page for the file
        root.dataset.dropping = "";
      },
      dragleave: (event) => {
        if (!event.relatedTarget) delete root.dataset.dropping;
      },
    });
  }, [onFile]);
}

export function useEscape(onEscape: () => void) {
  useEffect(() => listening({ keydown: (event) => event.key === "Escape" && onEscape() }), [onEscape]);
}

type Listeners = { [Name in keyof DocumentEventMap]?: (event: DocumentEventMap[Name]) => void };

/** Listens to the document; the value ends it. */
function listening(listeners: Listeners): () => void {
  const entries = Object.entries(listeners) as [string, EventListener][];
  for (const [name, listener] of entries) document.addEventListener(name, listener);
  return () => {
    for (const [name, listener] of entries) document.removeEventListener(name, listener);
  };
}
