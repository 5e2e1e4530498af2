import gradio as gr

from elasticnet.sr import Upscaler

upscaler = Upscaler(scale=4)  # or Upscaler("hf://owner/name")


def enlarge(photo, depth):
    return upscaler(photo, depth=int(depth))


photo = gr.Image(type="pil", image_mode="RGB")
depth = gr.Slider(1, max(upscaler.depths), value=2, step=1, label="depth")
app = gr.Interface(enlarge, [photo, depth], gr.Image(format="png"))

if __name__ == "__main__":
    app.launch()
