-- Gives the roles of roles.sql the password of the environment's POSTGRES_PASSWORD (psql 15 or later). On one machine
-- one password does; elsewhere give each its own: \password tidemark_reader.
\getenv password POSTGRES_PASSWORD
alter role tidemark_batch password :'password';
alter role tidemark_speed password :'password';
alter role tidemark_serving password :'password';
alter role tidemark_access password :'password';
alter role tidemark_reader password :'password';
