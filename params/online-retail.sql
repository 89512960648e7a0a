-- Online Retail as interactions and items; run from the folder that holds data/
-- Cancelled invoices begin with C: neither they nor rows without a price are purchases
CREATE TEMP TABLE sales AS
    SELECT *, strptime(InvoiceDate, '%m/%d/%Y %H:%M') AS moment
    FROM read_csv('data/online-retail/online-retail.csv', all_varchar = true)
    WHERE InvoiceNo NOT LIKE 'C%' AND Quantity::DOUBLE > 0 AND UnitPrice::DOUBLE > 0;
COPY (
    SELECT regexp_replace(CustomerID, '\.0$', '') AS user_id, StockCode AS item_id,
           epoch(moment)::BIGINT AS timestamp, 'purchase' AS event_type
    FROM sales
) TO 'data/online-retail/interactions.parquet';
-- A product is described as at its first sale, which is what the shop knew when it listed it
COPY (
    SELECT StockCode AS item_id, arg_min(trim(Description), moment) AS title,
           arg_min(UnitPrice::DOUBLE, moment) AS price
    FROM sales GROUP BY StockCode
) TO 'data/online-retail/items.parquet';
