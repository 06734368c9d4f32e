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
  words: string[]; // expressions that work: of things that are there, and of one that is not
  plurals: string[]; // for models that give several referents
}

interface Case {
  image: string;
  objects: Record<string, number[]>;
  groups?: { plural: string; singular: string }[];
}

const EXPRESSIONS = 4;
const files = import.meta.glob<string>("../../tests/samples/*.jpg", { eager: true, query: "?url", import: "default" });
const scenes = cases as unknown as Case[];

/** Scenes of the project's own generator; one expression is from the next scene and not in this one. */
export const SAMPLES: Sample[] = scenes.map(({ image, objects, groups = [] }, index) => {
  const there = Object.keys(objects);
  const next = Object.keys(scenes[(index + 1) % scenes.length]!.objects);
  const elsewhere = next.filter((name) => !there.includes(name)).slice(0, 1);
  const rest = (most: number) => [...there.slice(0, most), ...elsewhere].map((name) => `the ${name}`);
  return {
    name: image,
    url: files[`../../tests/samples/${image}`]!,
    words: [...groups.map(({ singular }) => singular), ...rest(EXPRESSIONS - groups.length)],
    plurals: [...groups.map(({ plural }) => plural), ...rest(EXPRESSIONS - groups.length)],
  };
});

/** The picture as the browser shows it, turned as its EXIF says. Throws Error, with a remedy, if it can't be shown. */
export async function readPicture(blob: Blob, name: string): Promise<Picture> {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${name} can't be shown as a picture. Choose a JPEG, PNG, WebP or AVIF file.`);
  }
  return { name, blob, url, width: image.naturalWidth, height: image.naturalHeight };
}
