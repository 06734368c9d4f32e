/** A picture from the camera: live if the browser allows it, else from the phone's own camera app. */
import { useEffect, useRef, useState } from "react";

interface Props {
  onFile: (file: File) => void;
  onClose: () => void;
}

export function Camera({ onFile, onClose }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const video = useRef<HTMLVideoElement>(null);
  const [fault, setFault] = useState("");
  const [isLive, setLive] = useState(false);

  useEffect(() => {
    dialog.current?.showModal();
    let stream: MediaStream | undefined;
    let isClosed = false;
    const open = async () => {
      try {
        // only pages over https, or from this machine, have mediaDevices
        if (!navigator.mediaDevices) throw new Error("browsers allow it only for pages over https");
        stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1920 } });
        if (isClosed) stream.getTracks().forEach((track) => track.stop());
        else if (video.current) video.current.srcObject = stream;
      } catch (error) {
        setFault(`The camera can't be shown here: ${(error as Error).message}.`);
      }
    };
    void open();
    return () => {
      isClosed = true;
      stream?.getTracks().forEach((track) => track.stop());
    };
  }, []);

  const shoot = () => {
    const { videoWidth, videoHeight } = video.current!;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [videoWidth, videoHeight];
    canvas.getContext("2d")!.drawImage(video.current!, 0, 0);
    canvas.toBlob((blob) => blob && onFile(new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.92);
    onClose();
  };

  return (
    <dialog ref={dialog} onClose={onClose} aria-label="Camera">
      {fault ? (
        <>
          <p>{fault}</p>
          <label>
            Take a picture with the camera app
            <input
              type="file"
              accept="image/*"
              capture="environment"
              onChange={({ target }) => {
                if (target.files?.[0]) onFile(target.files[0]);
                onClose();
              }}
            />
          </label>
        </>
      ) : (
        <video ref={video} autoPlay playsInline muted onPlaying={() => setLive(true)} />
      )}
      <div className="tools">
        <button onClick={onClose}>Close</button>
        {!fault && (
          <button className="primary" disabled={!isLive} onClick={shoot}>
            Take the picture
          </button>
        )}
      </div>
    </dialog>
  );
}
