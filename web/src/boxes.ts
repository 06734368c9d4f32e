/** Boxes are [x1, y1, x2, y2] in pixels of the picture as shown. */
export type Box = [number, number, number, number];

/** A point is [x, y] in them. */
export type Point = [number, number];

export interface Size {
  width: number;
  height: number;
}

const GOLDEN_RATIO = 0.618; // of the colour circle, as referent/client/drawing.py has it

/** The colour of the index-th expression, or model: HSV (index * GOLDEN_RATIO, 0.55, 1). */
export const colour = (index: number) => `hsl(${((index * GOLDEN_RATIO) % 1) * 360} 100% 72.5%)`;

export const area = ([x1, y1, x2, y2]: Box) => Math.max(0, x2 - x1) * Math.max(0, y2 - y1);

export function iou(a: Box, b: Box): number {
  const common = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  const union = area(a) + area(b) - common;
  return union > 0 ? common / union : 0;
}

export const contains = ([x1, y1, x2, y2]: Box, [x, y]: Point) => x1 <= x && x <= x2 && y1 <= y && y <= y2;

export const clip = ([x1, y1, x2, y2]: Box, { width, height }: Size): Box => [
  Math.min(Math.max(x1, 0), width),
  Math.min(Math.max(y1, 0), height),
  Math.min(Math.max(x2, 0), width),
  Math.min(Math.max(y2, 0), height),
];

/** The smallest box around all of them. */
export const around = (boxes: Box[]): Box => [
  Math.min(...boxes.map((box) => box[0])),
  Math.min(...boxes.map((box) => box[1])),
  Math.max(...boxes.map((box) => box[2])),
  Math.max(...boxes.map((box) => box[3])),
];

const NEIGHBOURHOOD = 1 / 8; // of a point, in sides of the picture

/** What to show around a point, where the size of its object is not known. */
export function neighbourhood([x, y]: Point, { width, height }: Size): Box {
  const half = (Math.max(width, height) * NEIGHBOURHOOD) / 2;
  return [x - half, y - half, x + half, y + half];
}

const ROOM = 1.8; // sides of the view, in sides of the box
const CLOSEST = 1 / 12; // smallest view, in sides of the picture

/** The part of the picture to look at to see the box well: of the given aspect (width / height), inside the picture if
 * that has room for it. */
export function viewOf([x1, y1, x2, y2]: Box, picture: Size, aspect: number, room = ROOM): Box {
  const least = Math.max(picture.width, picture.height) * CLOSEST;
  const width = Math.max((x2 - x1) * room, (y2 - y1) * room * aspect, least, least * aspect);
  const height = width / aspect;
  const start = (centre: number, side: number, whole: number) =>
    side >= whole ? (whole - side) / 2 : Math.min(Math.max(centre - side / 2, 0), whole - side);
  const [x, y] = [start((x1 + x2) / 2, width, picture.width), start((y1 + y2) / 2, height, picture.height)];
  return [x, y, x + width, y + height];
}

/** A closer (factor > 1) or wider view, which keeps a point of the picture where it is; null for the whole picture. */
export function zoomed(view: Box, [x, y]: Point, factor: number, picture: Size): Box | null {
  const most = (view[2] - view[0]) / (CLOSEST * picture.width);
  const scale = 1 / Math.min(factor, Math.max(1, most));
  return inside([x - (x - view[0]) * scale, y - (y - view[1]) * scale, x + (view[2] - x) * scale, y + (view[3] - y) * scale], picture); // prettier-ignore
}

export const panned = ([x1, y1, x2, y2]: Box, [dx, dy]: Point, picture: Size): Box | null =>
  inside([x1 + dx, y1 + dy, x2 + dx, y2 + dy], picture);

/** A view of the picture's own aspect, moved into the picture; null where it would show all. */
function inside([x1, y1, x2, y2]: Box, { width, height }: Size): Box | null {
  const [across, down] = [x2 - x1, y2 - y1];
  if (across >= width * 0.999) return null;
  const [left, top] = [Math.min(Math.max(x1, 0), width - across), Math.min(Math.max(y1, 0), height - down)];
  return [left, top, left + across, top + down];
}

/** The position and size of the whole picture in a frame that shows the view. */
export const placement = ([x1, y1, x2, y2]: Box, picture: Size) => ({
  width: `${(100 * picture.width) / (x2 - x1)}%`,
  left: `${(-100 * x1) / (x2 - x1)}%`,
  top: `${(-100 * y1) / (y2 - y1)}%`,
});
