/** The picture, or a part of it, with boxes and points; here the true box is drawn, too. */
import { useEffect, useMemo, useRef, useState, type KeyboardEvent, type PointerEvent, type ReactNode } from "react";
import { clip, panned, zoomed, type Box, type Point, type Size } from "./boxes";
import { Drawing, Truth } from "./Drawing";
import { heat, layout, SCREEN } from "./drawing";
import { useSize } from "./hooks";
import type { Picture } from "./pictures";
import { isAt, type Place, type Target, type Warm } from "./questions";

const LEAST_SIDE = 3; // of a drawn box, pixels of the picture: less is a click
const STEPS = 50; // of the arrow keys, across the picture
const STEP = 1.5; // of the buttons that zoom
const DOUBLE = 2.5; // a double click
const WHEEL = 0.002; // of a zoom, for each pixel of a wheel; a pinch of a touchpad counts more
const PINCH = 5;

interface Props {
  picture: Picture;
  places: Place[];
  truths: Box[];
  warm: Warm[];
  view: Box | null; // the part to show; null: all
  onView: (view: Box | null) => void;
  active: Target | null;
  onActive: (target: Target | null) => void;
  drawing: { expression: string; takesKeys: boolean } | null;
  onDrawn: (box: Box) => void;
  caption: ReactNode;
}

export function Stage(props: Props) {
  const { picture, places, truths, warm, view, onView, active, onActive, drawing, onDrawn, caption } = props;
  const { width, height } = picture;
  const frame = useRef<HTMLDivElement>(null);
  const size = useSize(frame);
  const shown = view ?? ([0, 0, width, height] as Box);
  const scale = size.width / (shown[2] - shown[0]);
  const marked = useMemo(
    () => (size.width ? layout(places, view ?? [0, 0, width, height], size, SCREEN) : []),
    [places, view, size, width, height],
  );
  const onScreen = ([x1, y1, x2, y2]: Box): Box => [
    (x1 - shown[0]) * scale,
    (y1 - shown[1]) * scale,
    (x2 - shown[0]) * scale,
    (y2 - shown[1]) * scale,
  ];
  const frameShare = ([x1, y1, x2, y2]: Box) => ({
    left: percent(x1 - shown[0], shown[2] - shown[0]),
    top: percent(y1 - shown[1], shown[3] - shown[1]),
    width: percent(x2 - x1, shown[2] - shown[0]),
    height: percent(y2 - y1, shown[3] - shown[1]),
  });
  const spread = frameShare([0, 0, width, height]);
  const hand = useHand(frame, picture, shown, view !== null, onView);

  return (
    <figure className="stage">
      {caption && <figcaption>{caption}</figcaption>}
      <div
        ref={frame}
        className={view ? "frame close" : "frame"}
        style={{ aspectRatio: `${width} / ${height}`, "--ratio": width / height } as React.CSSProperties}
        {...(drawing ? {} : hand)}
      >
        <img src={picture.url} alt={`The picture, ${picture.name}`} draggable={false} style={spread} />
        {warm.map((each) => (
          <Heat key={`${each.model} ${each.expression}`} warm={each} place={frameShare(each.frame)} active={active} />
        ))}
        <svg viewBox={`0 0 ${size.width} ${size.height}`} role="img" aria-label={names(places)}>
          <Drawing
            marked={marked}
            truths={truths.map(onScreen)}
            style={SCREEN}
            fades={({ target }) => active !== null && !isAt(active, target)}
            onActive={onActive}
          />
        </svg>
        {drawing && <Pen key={drawing.expression} picture={picture} place={spread} {...drawing} onDrawn={onDrawn} />}
      </div>
      <div className="zoom" role="group" aria-label="Zoom">
        <button
          aria-label="Zoom in"
          title="Zoom in"
          onClick={() => onView(zoomed(shown, middle(shown), STEP, picture))}
        >
          +
        </button>
        <button
          aria-label="Zoom out"
          title="Zoom out"
          disabled={!view}
          onClick={() => onView(zoomed(shown, middle(shown), 1 / STEP, picture))}
        >
          −
        </button>
      </div>
    </figure>
  );
}

const percent = (part: number, whole: number) => `${(100 * part) / whole}%`;
const middle = ([x1, y1, x2, y2]: Box): Point => [(x1 + x2) / 2, (y1 + y2) / 2];

/** The marks as text for a screen reader. */
function names(places: Place[]): string {
  const named = (kind: string, some: Place[]) =>
    some.length ? `${kind}: ${[...new Set(some.map(({ referent }) => referent.expression))].join(", ")}` : [];
  const [boxes, points] = [places.filter(({ box }) => box), places.filter(({ box }) => !box)];
  return [named("Boxes", boxes), named("Points", points)].flat().join(". ") || "No boxes";
}

/** Zooms by wheel, pinch and double click, and moves what is zoomed: the handlers of the frame. */
function useHand(
  frame: React.RefObject<HTMLDivElement | null>,
  picture: Size,
  shown: Box,
  isClose: boolean,
  onView: (view: Box | null) => void,
) {
  const latest = useRef(shown); // several events may come before the next drawing
  latest.current = shown;
  const look = (next: Box | null) => {
    latest.current = next ?? [0, 0, picture.width, picture.height];
    onView(next);
  };
  const at = ({ clientX, clientY }: { clientX: number; clientY: number }): Point => {
    const { left, top, width } = frame.current!.getBoundingClientRect();
    const [x1, y1, x2] = latest.current;
    const scale = (x2 - x1) / width;
    return [x1 + (clientX - left) * scale, y1 + (clientY - top) * scale];
  };
  const fingers = useRef(new Map<number, { clientX: number; clientY: number }>());
  const wheel = useRef<(event: WheelEvent) => void>(null);
  wheel.current = (event) => {
    if (!isClose && event.deltaY > 0) return; // the page scrolls
    event.preventDefault();
    const factor = Math.exp(-event.deltaY * WHEEL * (event.ctrlKey ? PINCH : 1));
    look(zoomed(latest.current, at(event), factor, picture));
  };
  useEffect(() => {
    const element = frame.current!;
    const listener = (event: WheelEvent) => wheel.current?.(event);
    element.addEventListener("wheel", listener, { passive: false }); // React's own cannot keep the page from scrolling
    return () => element.removeEventListener("wheel", listener);
  }, [frame]);

  const release = (event: PointerEvent) => fingers.current.delete(event.pointerId);
  return {
    onPointerDown: (event: PointerEvent) => {
      if (event.button !== 0) return;
      fingers.current.set(event.pointerId, event);
      if (isClose || fingers.current.size > 1) frame.current!.setPointerCapture(event.pointerId);
    },
    onPointerMove: (event: PointerEvent) => {
      const before = fingers.current.get(event.pointerId);
      if (!before) return;
      const other = [...fingers.current].find(([id]) => id !== event.pointerId)?.[1];
      fingers.current.set(event.pointerId, event);
      if (other) {
        const apart = (one: typeof other) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
        const between = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
        look(zoomed(latest.current, at(between), apart(event) / Math.max(1, apart(before)), picture));
      } else if (isClose) {
        const [[x1, y1], [x2, y2]] = [at(before), at(event)];
        look(panned(latest.current, [x1 - x2, y1 - y2], picture));
      }
    },
    onPointerUp: release,
    onPointerCancel: release,
    onDoubleClick: (event: React.MouseEvent) =>
      look(isClose ? null : zoomed(latest.current, at(event), DOUBLE, picture)),
  };
}

/** Where a model looked. */
function Heat({ warm, place, active }: { warm: Warm; place: React.CSSProperties; active: Target | null }) {
  const holder = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const source = heat(warm.cells, warm.colourIndex);
    const canvas = holder.current!;
    [canvas.width, canvas.height] = [source.width, source.height];
    canvas.getContext("2d")!.drawImage(source, 0, 0);
  }, [warm]);
  const fades = active !== null && active.expression !== warm.expression;
  return <canvas ref={holder} className={fades ? "heat faded" : "heat"} style={place} aria-hidden="true" />;
}

interface PenProps {
  picture: Picture;
  place: React.CSSProperties;
  expression: string;
  takesKeys: boolean;
  onDrawn: (box: Box) => void;
}

/** Draws a box: by dragging; or with arrows (Shift: its far corner) and Enter. */
function Pen({ picture, place, expression, takesKeys, onDrawn }: PenProps) {
  const [draft, setDraft] = useState<Box | null>(null);
  const corner = useRef<[number, number]>(null); // where a drag began
  const surface = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (takesKeys) surface.current?.focus({ preventScroll: true });
  }, [takesKeys]);

  const at = (event: PointerEvent): [number, number] => {
    const { left, top, width, height } = event.currentTarget.getBoundingClientRect();
    return [((event.clientX - left) / width) * picture.width, ((event.clientY - top) / height) * picture.height];
  };
  const drag = (event: PointerEvent): Box | null => {
    if (!corner.current) return null;
    const [[x1, y1], [x2, y2]] = [corner.current, at(event)];
    return clip([Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)], picture);
  };
  const press = (event: KeyboardEvent) => {
    const { width, height } = picture;
    const [x1, y1, x2, y2] = draft ?? [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4];
    const arrows: Record<string, [number, number]> = {
      ArrowLeft: [-width / STEPS, 0],
      ArrowRight: [width / STEPS, 0],
      ArrowUp: [0, -height / STEPS],
      ArrowDown: [0, height / STEPS],
    };
    const step = arrows[event.key];
    if (event.key === "Enter" && draft) onDrawn(draft);
    else if (step && event.shiftKey) setDraft([x1, y1, Math.max(x1, x2 + step[0]), Math.max(y1, y2 + step[1])]);
    else if (step) setDraft([x1 + step[0], y1 + step[1], x2 + step[0], y2 + step[1]]);
    else return;
    event.preventDefault();
  };
  const unit = { type: 0, line: Math.max(picture.width, picture.height) / 250, halo: picture.width / 600 };

  return (
    <div
      ref={surface}
      className="pen"
      style={place}
      role="application"
      aria-roledescription="drawing area"
      aria-label={`True box of ${expression}. Arrows move it, Shift and arrows size it, Enter keeps it, Escape leaves.`}
      tabIndex={0}
      onKeyDown={press}
      onPointerDown={(event) => {
        event.currentTarget.setPointerCapture(event.pointerId);
        corner.current = at(event);
      }}
      onPointerMove={(event) => corner.current && setDraft(drag(event))}
      onPointerUp={(event) => {
        const box = drag(event);
        corner.current = null;
        if (box && Math.min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE) onDrawn(box);
        else setDraft(null);
      }}
    >
      <svg viewBox={`0 0 ${picture.width} ${picture.height}`} aria-hidden="true">
        {draft && <Truth box={draft} style={unit} />}
      </svg>
    </div>
  );
}
