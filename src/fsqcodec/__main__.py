from fsqcodec_cli import app

app()
