/** Pictures: from files, the clipboard, the camera, and the samples that ship. */
import cases from "../../tests/samples/samples.json";
import type { Size } from "./boxes";

export interface Picture extends Size {
  name: string;
  blob: Blob;
  url: string; // for as long as the page lives
}

export interface Sample {
  name: string;
  url: string;
  expressions: string[];
}

const EXPRESSIONS = 4;
const files = import.meta.glob<string>("../../tests/samples/*.jpg", { eager: true, query: "?url", import: "default" });

/** Scenes of the project's own generator: things that are there, and one of the next scene that is not. */
export const SAMPLES: Sample[] = cases.map(({ image, objects }, index) => {
  const there = Object.keys(objects);
  const elsewhere = Object.keys(cases[(index + 1) % cases.length]!.objects).filter((name) => !there.includes(name));
  return {
    name: image,
    url: files[`../../tests/samples/${image}`]!,
    expressions: [...there.slice(0, EXPRESSIONS), ...elsewhere.slice(0, 1)].map((name) => `the ${name}`),
  };
});

/** The picture as the browser shows it, turned as its EXIF says. Throws Error, with what to do, where it can't. */
export async function readPicture(blob: Blob, name: string): Promise<Picture> {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${name} is no picture that can be shown. Choose a JPEG, PNG, WebP or AVIF file.`);
  }
  return { name, blob, url, width: image.naturalWidth, height: image.naturalHeight };
}
