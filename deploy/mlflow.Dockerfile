FROM python:3.11-slim
RUN pip install --no-cache-dir 'mlflow[auth]==3.17.2' 'psycopg2-binary>=2.9,<3' 'boto3>=1.35,<2'
# who may log in is kept here: basic_auth.db
WORKDIR /auth
