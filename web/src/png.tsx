/** The picture with what was found in it, as a file. */
import type { ReactNode } from "react";
import { flushSync } from "react-dom";
import { createRoot } from "react-dom/client";
import { colour, type Box } from "./boxes";
import { heat, labelSize, layout, legend, paddingOf, PAPER, styleOf, textWidth, type Entry } from "./drawing";
import { Drawing, Legend, legendHeight } from "./Drawing";
import type { Picture } from "./pictures";
import { warmOf, type Place, type Question } from "./questions";

const LEGEND_EMS = 30; // width of a legend below a narrower picture, at most

/** A PNG of the picture's own size, plus the legend below if there is one. */
export async function png(question: Question, places: Place[], truths: Box[]): Promise<Blob> {
  const { picture, models } = question;
  const style = styleOf(picture);
  const marked = layout(places, [0, 0, picture.width, picture.height], picture, style);
  const entries: Entry[] = [
    ...legend(marked),
    ...(models.length > 1
      ? models.map(({ name }, index) => ({ colour: colour(index), numbers: "■", words: name }))
      : []),
  ];
  const height = picture.height + legendHeight(entries, style);
  const longest = Math.max(
    0,
    ...entries.map(({ numbers, words }) => textWidth(words, style) + labelSize(numbers, style).width),
  );
  const wanted = entries.length ? Math.min(longest + 5 * paddingOf(style), LEGEND_EMS * style.type) : 0;
  const width = Math.max(picture.width, Math.ceil(wanted));

  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d")!;
  context.fillStyle = PAPER;
  context.fillRect(0, 0, width, height);
  context.save();
  context.beginPath();
  context.rect(0, 0, picture.width, picture.height);
  context.clip();
  context.drawImage(await loaded(picture.url), 0, 0, picture.width, picture.height);
  for (const { cells, frame, colourIndex } of warmOf(question)) {
    const [x1, y1, x2, y2] = frame;
    context.drawImage(heat(cells, colourIndex), x1, y1, x2 - x1, y2 - y1);
  }
  context.restore();
  const svg = written(
    <svg xmlns="http://www.w3.org/2000/svg" width={width} height={height} viewBox={`0 0 ${width} ${height}`}>
      <Drawing marked={marked} truths={truths} style={style} />
      {entries.length > 0 && <Legend entries={entries} top={picture.height} style={style} />}
    </svg>,
  );
  context.drawImage(await loaded(`data:image/svg+xml,${encodeURIComponent(svg)}`), 0, 0);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large to be drawn here")))),
  );
}

/** An element as text for a file. */
function written(element: ReactNode): string {
  const holder = document.createElement("div");
  const root = createRoot(holder);
  flushSync(() => root.render(element));
  const text = new XMLSerializer().serializeToString(holder.firstElementChild!);
  root.unmount();
  return text;
}

async function loaded(url: Picture["url"]): Promise<HTMLImageElement> {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
