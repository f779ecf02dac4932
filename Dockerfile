# The page and the command line in a container, for an NVIDIA GPU and for a CPU.
#
#   docker build --tag eqdiff .                                  # docker run --gpus all ...; runs without a GPU too
#   docker build --tag eqdiff --build-arg TORCH_INDEX=URL .      # for a CPU alone, a tenth of the size
#
# URL: the index of wheels for CPUs that PyTorch's page "Get started" names.
#
#   docker run -p 127.0.0.1:7860:7860 -v eqdiff:/eqdiff/work eqdiff
#   docker run -v eqdiff:/eqdiff/work eqdiff bash /eqdiff/code/scripts/train.sh
#   docker run -v eqdiff:/eqdiff/work eqdiff bash /eqdiff/code/scripts/test.sh
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 eqdiff
WORKDIR /eqdiff/code

# the libraries first: they change less often than the code
ARG TORCH_INDEX=
COPY requirements.txt requirements-app.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision || exit 1; \
    fi; \
    pip install --no-cache-dir --requirement requirements-app.txt

COPY LICENSE train_eqdiff.py test_eqdiff.py eval_eqdiff.py export_concept.py make_masks.py make_gallery.py ./
COPY app app
COPY assets assets
COPY eqdiff eqdiff
COPY scripts scripts
COPY studies/__init__.py studies/__init__.py
COPY studies/insides studies/insides
COPY toybox toybox

# results go into a volume; the code stays root's, so that no job can change it
RUN mkdir --parents /eqdiff/work && chown eqdiff /eqdiff/work
USER eqdiff
WORKDIR /eqdiff/work
VOLUME /eqdiff/work
EXPOSE 7860
CMD ["bash", "/eqdiff/code/scripts/app.sh", "--host", "0.0.0.0"]
