/** The state of the page, and all actions that change it. */
import { type Box } from "./boxes";
import type { Picture } from "./pictures";
import { truthKey, type Outcome, type Question, type Target, type Truths } from "./questions";
import type { Options } from "./service";

const REMEMBERED = 30; // questions of the visit

export interface State {
  chosen: string[]; // names of the models to ask; none: the service's default
  options: Options;
  rows: string[]; // expressions as they are typed, at least one row
  isTyped: boolean; // by a person: a sample must not replace them
  picture: Picture | null;
  refused: string; // why a picture was not accepted
  questions: Question[]; // of this visit, the latest first
  shownId: number | null; // the question whose answers are shown
  isAsking: boolean;
  threshold: number | null; // null: each model's own
  truths: Truths;
  isOverlaid: boolean; // compared models on one picture
  hasCamera: boolean;
  // of the question shown: what is highlighted, and the expression whose true box is being drawn
  active: Target | null;
  drawing: string | null;
  view: Box | null; // the part of the picture that is shown; null: all
  zoomed: Target | null; // what the view was chosen for
}

export const START: State = {
  chosen: [],
  options: { maxInstances: null, heatmap: false },
  rows: [""],
  isTyped: false,
  picture: null,
  refused: "",
  questions: [],
  shownId: null,
  isAsking: false,
  threshold: null,
  truths: {},
  isOverlaid: false,
  hasCamera: false,
  active: null,
  drawing: null,
  view: null,
  zoomed: null,
};

export type Action =
  | { type: "set"; values: Partial<Pick<State, "chosen" | "options" | "threshold" | "isOverlaid" | "hasCamera">> }
  | { type: "typed"; row: number; text: string }
  | { type: "added"; text: string }
  | { type: "removed"; row: number }
  | { type: "filled"; rows: string[] } // by a sample
  | { type: "shown"; picture: Picture } // another picture, nothing asked about it yet
  | { type: "refused"; why: string }
  | { type: "asked"; question: Question }
  | { type: "answered"; id: number; model: string; outcome: Outcome }
  | { type: "ended" } // the request: all models have answered, or it was given up
  | { type: "returned"; question: Question } // to an earlier question
  | { type: "pointed"; target: Target | null }
  | { type: "looked"; view: Box | null; target: Target | null }
  | { type: "drawing"; expression: string | null }
  | { type: "drawn"; expression: string; box: Box }
  | { type: "forgot"; expression: string };

export function reduce(state: State, action: Action): State {
  switch (action.type) {
    case "set":
      return { ...state, ...action.values };
    case "typed": {
      const lines = action.text.split("\n"); // more than one if they were pasted
      const rows = lines.length > 1 ? lines.filter((line) => line.trim()) : lines;
      return typed(state, state.rows.toSpliced(action.row, 1, ...rows));
    }
    case "added": {
      const free = state.rows.findIndex((row) => !row.trim());
      if (!action.text) return typed(state, [...state.rows, ""]);
      return typed(state, free < 0 ? [...state.rows, action.text] : state.rows.with(free, action.text));
    }
    case "removed":
      return typed(state, state.rows.toSpliced(action.row, 1));
    case "filled":
      return { ...state, rows: action.rows, isTyped: false };
    case "shown":
      return { ...atRest(state), picture: action.picture, shownId: null, isAsking: false };
    case "refused":
      return { ...state, refused: action.why };
    case "asked": {
      const { question } = action;
      const questions = [question, ...state.questions.filter(isAnswered)].slice(0, REMEMBERED);
      const shown = state.picture === question.picture ? state : { ...atRest(state), shownId: null };
      return { ...shown, picture: question.picture, questions, isAsking: true };
    }
    case "answered": {
      const { id, model, outcome } = action;
      const questions = state.questions.map((each) =>
        each.id === id ? { ...each, outcomes: { ...each.outcomes, [model]: outcome } } : each,
      );
      if (state.shownId === id) return { ...state, questions };
      return { ...state, questions, shownId: id, active: null, drawing: null, zoomed: null };
    }
    case "ended":
      return { ...state, isAsking: false };
    case "returned": {
      const { picture, expressions, id, isTyped } = action.question;
      return { ...atRest(state), picture, rows: expressions, isTyped, shownId: id, isAsking: false };
    }
    case "pointed":
      return { ...state, active: action.target };
    case "looked":
      return { ...state, view: action.view, zoomed: action.target };
    case "drawing":
      return { ...state, drawing: action.expression };
    case "drawn":
      return {
        ...state,
        drawing: null,
        truths: { ...state.truths, [truthKey(state.picture!, action.expression)]: action.box },
      };
    case "forgot": {
      const { [truthKey(state.picture!, action.expression)]: _, ...truths } = state.truths;
      return { ...state, truths };
    }
  }
}

const typed = (state: State, rows: string[]): State => ({
  ...state,
  rows: rows.length ? rows : [""],
  isTyped: rows.some((row) => row.trim()),
});

/** The state without highlight, zoom and drawing. */
const atRest = (state: State): State => ({
  ...state,
  refused: "",
  active: null,
  drawing: null,
  view: null,
  zoomed: null,
});

export const isAnswered = ({ outcomes }: Question) => Object.values(outcomes).some((each) => "response" in each);
