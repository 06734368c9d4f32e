/** The area where a picture is chosen or dropped, and shown. */
import { useRef, type ReactNode } from "react";
import type { Picture } from "./pictures";

interface Props {
  picture: Picture | null;
  formats: string[]; // media types that the service takes
  isZoomed: boolean;
  onWhole: () => void;
  onFile: (file: File) => void;
  onCamera: () => void;
  children: ReactNode;
}

export function Intake({ picture, formats, isZoomed, onWhole, onFile, onCamera, children }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const choose = () => input.current?.click();
  return (
    <div className={picture ? "intake" : "intake empty"}>
      <input
        ref={input}
        type="file"
        accept={formats.join() || "image/*"}
        aria-label="Picture file"
        tabIndex={-1}
        className="visually-hidden"
        onChange={({ target }) => {
          if (target.files?.[0]) onFile(target.files[0]);
          target.value = ""; // so that the same file can be chosen again
        }}
      />
      {picture ? (
        children
      ) : (
        <button className="drop" onClick={choose}>
          <svg viewBox="0 0 48 48" width="48" height="48" aria-hidden="true">
            <rect x="5" y="8" width="38" height="32" rx="4" />
            <circle cx="16" cy="18" r="3.5" />
            <path d="m6 35 11-10 8 7 7-6 10 9" />
          </svg>
          <span className="by-mouse">
            <strong>Drop a picture here</strong>
            or paste it, or click to choose a file
          </span>
          <span className="by-touch">
            <strong>Tap to choose a picture</strong>
            or take one with the camera
          </span>
        </button>
      )}
      <div className="tools">
        {picture && (
          <p title={picture.name}>
            {picture.name} <span>{`${picture.width} × ${picture.height}`}</span>
          </p>
        )}
        {isZoomed && <button onClick={onWhole}>Whole picture</button>}
        <button onClick={choose}>{picture ? "Another picture" : "Choose a picture"}</button>
        <button onClick={onCamera}>Camera</button>
      </div>
    </div>
  );
}
