FROM prefecthq/prefect:3.8.8-python3.11
# with 2.1 this version plans no scheduled runs
RUN pip install --no-cache-dir 'sqlalchemy<2.1'
