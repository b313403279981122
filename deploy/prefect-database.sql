CREATE DATABASE prefect OWNER vaeline;
