/** The picture with its boxes and points; whole or a part of it; and a hand that draws the true box. */
import { useEffect, useRef, useState, type KeyboardEvent, type PointerEvent, type ReactNode } from "react";
import { area, clip, colour, placement, type Box, type Point } from "./boxes";
import type { Picture } from "./pictures";
import { isAt, type Place, type Target } from "./questions";

const LEAST_SIDE = 3; // of a drawn box, pixels of the picture: less is a click
const STEPS = 50; // of the arrow keys, across the picture

interface Props {
  picture: Picture;
  places: Place[];
  truths: Box[];
  view: Box | null; // the part to show; null: all
  active: Target | null;
  onActive: (target: Target | null) => void;
  drawing: { expression: string; takesKeys: boolean } | null;
  onDrawn: (box: Box) => void;
  caption: ReactNode;
}

export function Stage({ picture, places, truths, view, active, onActive, drawing, onDrawn, caption }: Props) {
  const { width, height } = picture;
  const size = ({ box }: Place) => (box ? area(box) : 0);
  const shown = [...places].sort((a, b) => size(b) - size(a)); // small ones on top, to be pointed at
  const boxes = shown.flatMap((place) => (place.box ? { ...place, box: place.box } : []));
  const points = shown.flatMap((place) => (place.point ? { ...place, point: place.point } : []));
  const named = (kind: string, places: Place[]) =>
    places.length ? `${kind}: ${[...new Set(places.map(({ referent }) => referent.expression))].join(", ")}` : [];
  const names = [named("Boxes", boxes), named("Points", points)].flat().join(". ");

  const fades = ({ target }: Place) => active !== null && !isAt(active, target);
  const marking = (place: Place, kind: string) => ({
    className: fades(place) ? `${kind} faded` : kind,
    "data-expression": place.target.expression,
    "data-model": place.model.name,
    onPointerEnter: () => onActive(place.target),
    onPointerLeave: () => onActive(null),
  });

  const figure = useRef<HTMLElement>(null);
  const looksAt = view?.join();
  useEffect(() => {
    if (looksAt) figure.current?.scrollIntoView({ block: "nearest" }); // on a phone the list is far below
  }, [looksAt]);

  return (
    <figure className="stage" ref={figure}>
      {caption && <figcaption>{caption}</figcaption>}
      <div
        className="frame"
        style={{ aspectRatio: `${width} / ${height}`, "--ratio": width / height } as React.CSSProperties}
      >
        <div className="canvas" style={placement(view ?? [0, 0, width, height], picture)}>
          <img src={picture.url} alt={`The picture, ${picture.name}`} draggable={false} />
          <svg viewBox={`0 0 ${width} ${height}`} role="img" aria-label={names || "No boxes"}>
            {boxes.map((place) => (
              <g key={keyOf(place)} {...marking(place, "box")}>
                <Rectangle box={place.box} className="halo" />
                <Rectangle box={place.box} className="line" stroke={colour(place.colourIndex)} />
              </g>
            ))}
            {truths.map((box, index) => (
              <Truth key={index} box={box} />
            ))}
          </svg>
          {points.map((place) => (
            <span
              key={keyOf(place)}
              {...marking(place, "point")}
              style={{ color: colour(place.colourIndex), ...pointPlace(place.point, picture) }}
            />
          ))}
          {shown.map((place) => (
            <Label key={keyOf(place)} place={place} picture={picture} fades={fades(place)} />
          ))}
          {drawing && <Pen key={drawing.expression} picture={picture} {...drawing} onDrawn={onDrawn} />}
        </div>
      </div>
    </figure>
  );
}

function Rectangle({ box: [x1, y1, x2, y2], ...rest }: { box: Box; className: string; stroke?: string }) {
  return <rect x={x1} y={y1} width={x2 - x1} height={y2 - y1} vectorEffect="non-scaling-stroke" {...rest} />;
}

function Truth({ box }: { box: Box }) {
  return (
    <g className="truth">
      <Rectangle box={box} className="halo" />
      <Rectangle box={box} className="dashes" />
    </g>
  );
}

const keyOf = ({ target, model }: Place) => `${model.name} ${target.expression} ${target.rank ?? ""}`;

/** The expression and its score; of several places all but the best have their rank alone, as there may be many. */
function Label({ place, picture, fades }: { place: Place; picture: Picture; fades: boolean }) {
  const { referent, rank, box, point, colourIndex } = place;
  const where = box ? boxLabelPlace(box, picture) : pointLabelPlace(point!, picture);
  return (
    <span
      className={["label", !box && "beside", fades && "faded"].filter(Boolean).join(" ")}
      aria-hidden="true" // the list says it
      style={{ background: colour(colourIndex), ...where }}
    >
      {rank !== null && <b>{rank} </b>}
      {(rank === null || rank === 1) && (
        <>
          {referent.expression} <b>{referent.score?.toFixed(2)}</b>
        </>
      )}
    </span>
  );
}

const percent = (part: number, whole: number) => `${(100 * part) / whole}%`;

const pointPlace = ([x, y]: Point, { width, height }: Picture) => ({
  left: percent(x, width),
  top: percent(y, height),
});

/** On top of the box, inside the picture: from the box's left side, or its right side in the right half. */
function boxLabelPlace([x1, y1, x2]: Box, { width, height }: Picture) {
  const isRight = x1 + x2 > width;
  return {
    top: `max(${percent(y1, height)}, 1.5rem)`,
    ...(isRight ? { right: percent(width - x2, width) } : { left: percent(x1, width) }),
    maxWidth: percent(isRight ? x2 : width - x1, width),
  };
}

/** Beside the point, towards the middle of the picture. */
function pointLabelPlace([x, y]: Point, { width, height }: Picture) {
  const isRight = 2 * x > width;
  return {
    top: `clamp(0.75rem, ${percent(y, height)}, 100% - 0.75rem)`,
    [isRight ? "right" : "left"]: `calc(${percent(isRight ? width - x : x, width)} + var(--ring))`,
    maxWidth: `calc(${percent(isRight ? x : width - x, width)} - var(--ring))`,
  };
}

interface PenProps {
  picture: Picture;
  expression: string;
  takesKeys: boolean;
  onDrawn: (box: Box) => void;
}

/** Draws a box: by dragging; or with arrows (Shift: its far corner) and Enter. */
function Pen({ picture, expression, takesKeys, onDrawn }: PenProps) {
  const [draft, setDraft] = useState<Box | null>(null);
  const corner = useRef<[number, number]>(null); // where a drag began
  const surface = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (takesKeys) surface.current?.focus();
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

  return (
    <div
      ref={surface}
      className="pen"
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
        {draft && <Truth box={draft} />}
      </svg>
    </div>
  );
}
